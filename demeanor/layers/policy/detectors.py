"""Detectors that give a text a probability: classifiers, the shipped injection detector, probes, judges, and combinations.

In: a declared rule and the kit. Out: what scores a folded text, at once or by asking a model. A combination asks a model only
where its answer can still change the decision.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from demeanor.core.personal_data import DETECTORS, Find
from demeanor.core.phone_numbers import Span
from demeanor.core.registry import SHIPPED
from demeanor.layers import Kit
from demeanor.layers.policy.classifier import TextClassifier, load_classifier
from demeanor.layers.policy.model_scores import judge_of, probe_of
from demeanor.layers.policy.rules import Combination, RuleSpec, Signal, compiled

Parts: TypeAlias = Callable[[str], Sequence[tuple[Span, float]]]
"""Takes a folded text; returns parts of it with their probabilities."""
Ask: TypeAlias = Callable[[str], Awaitable[float]]
ROUNDING = 1e-9
MOST_LOG_ODDS = 8.0  # of one part of a combination
JUDGE_LOG_ODDS = 4.0  # of a judge's yes; its no is as far below 0
INJECTION = SHIPPED / "injection.safetensors"


@dataclass(frozen=True, slots=True)
class ProbabilityDetector:
    """How to score a text: `parts` at once, or `ask` a model; `threshold` is the detector's own."""

    threshold: float
    parts: Parts | None = None
    ask: Ask | None = None

    @property
    def weigh(self) -> Callable[[str], float] | None:
        """The probability of a whole text, that of its most suspect part."""
        parts = self.parts
        return None if parts is None else lambda text: max((p for _, p in parts(text)), default=0.0)

    def find_at(self, threshold: float) -> Find:
        """Return what finds the parts of a text from a probability on; parts that overlap are one match."""
        parts = self.parts
        if parts is None:
            return _nothing

        def find(text: str, start: int) -> Iterator[Span]:
            if start or not text:
                return
            begin, end = -1, -1
            for (a, b), p in sorted(parts(text)):
                if p < threshold - ROUNDING or a >= b:
                    continue
                if a > end >= 0:
                    yield begin, end
                begin, end = (a, b) if a > end or end < 0 else (begin, max(end, b))
            if end >= 0:
                yield begin, end

        return find


def _nothing(text: str, start: int) -> Iterator[Span]:
    yield from ()


def detector(spec: RuleSpec, kit: Kit | None) -> ProbabilityDetector:
    """Return the detector of a rule with a probability; raises DemeanorError for a file that cannot be used."""
    if spec.score is not None:
        return _combined(spec.score, spec.threshold or 0.5, kit)
    if spec.judge is not None:
        return ProbabilityDetector(0.5, ask=judge_of(spec.judge, kit))
    if spec.probe is not None:
        probe = probe_of(Path(spec.probe), kit)
        return ProbabilityDetector(probe.threshold, ask=probe.ask)
    path = INJECTION if spec.classifier is None else Path(spec.classifier)
    found = load_classifier(path)
    column = found.column(spec.label)
    return ProbabilityDetector(found.thresholds[column], parts=_remembered(found, column))


def _remembered(found: TextClassifier, column: int) -> Parts:
    """Return the parts of a text; the last text is remembered, because a match is looked at more than once."""
    last: list[tuple[str, list[tuple[Span, float]]]] = []

    def parts(text: str) -> Sequence[tuple[Span, float]]:
        if not text.strip():
            return ()
        for known, result in last:
            if known == text:
                return result
        spans, probabilities_WL = found.parts(text)
        result = [(span, float(p)) for span, p in zip(spans, probabilities_WL[:, column])]
        last[:] = [(text, result)]
        return result

    return parts


# ---- combinations ----


@dataclass(frozen=True, slots=True)
class WeightedPart:
    """One part of a combination: its weight and its log-odds for a text, at once or by asking a model; `most` bounds them."""

    weight: float
    most: float
    least: float
    log_odds: Callable[[str], float] | None = None
    ask: Ask | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        ends = self.weight * self.least, self.weight * self.most
        return min(ends), max(ends)


def log_odds(p: float) -> float:
    """Return the log-odds of a probability, at most MOST_LOG_ODDS from 0."""
    p = min(max(p, 1e-9), 1 - 1e-9)
    return max(-MOST_LOG_ODDS, min(MOST_LOG_ODDS, math.log(p / (1 - p))))


def _combined(score: Combination, threshold: float, kit: Kit | None) -> ProbabilityDetector:
    """Return the logistic combination; models are asked last, and only while the decision is open."""
    parts = [_part(signal, kit) for signal in score.all]
    quick, slow = [p for p in parts if p.log_odds], [p for p in parts if p.ask]
    wanted = math.log(threshold / (1 - threshold))

    def known(text: str) -> float:
        return score.bias + math.fsum(p.weight * p.log_odds(text) for p in quick if p.log_odds)

    async def ask(text: str) -> float:
        total = known(text)
        for i, part in enumerate(slow):
            low, high = (math.fsum(ends) for ends in zip(*(p.bounds for p in slow[i:])))
            if total + low >= wanted or total + high < wanted:
                break  # no answer can change the decision
            assert part.ask is not None
            total += part.weight * await part.ask(text)
        return _sigmoid(total)

    if slow:
        return ProbabilityDetector(threshold, ask=ask)
    return ProbabilityDetector(threshold, parts=lambda text: [((0, len(text)), _sigmoid(known(text)))])


def _part(signal: Signal, kit: Kit | None) -> WeightedPart:
    if signal.judge is not None:
        judge = judge_of(signal.judge, kit)

        async def verdict(text: str) -> float:
            return JUDGE_LOG_ODDS * (2 * await judge(text) - 1)

        return WeightedPart(signal.weight, JUDGE_LOG_ODDS, -JUDGE_LOG_ODDS, ask=verdict)
    if signal.probe is not None:
        probe = probe_of(Path(signal.probe), kit)

        async def probed(text: str) -> float:
            return log_odds(await probe.ask(text))

        return WeightedPart(signal.weight, MOST_LOG_ODDS, -MOST_LOG_ODDS, ask=probed)
    if signal.pattern is not None:
        regexp = compiled(signal.pattern)
        return WeightedPart(signal.weight, 1, 0, lambda text: float(regexp.search(text) is not None))
    if signal.detector is not None and signal.detector != "injection":
        find = DETECTORS[signal.detector].find
        return WeightedPart(signal.weight, 1, 0, lambda text: float(any(True for _ in find(text, 0))))
    found = load_classifier(INJECTION if signal.classifier is None else Path(signal.classifier))
    weigh = ProbabilityDetector(0.5, parts=_remembered(found, found.column(signal.label))).weigh
    assert weigh is not None
    return WeightedPart(signal.weight, MOST_LOG_ODDS, -MOST_LOG_ODDS, lambda text: log_odds(weigh(text)))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, x))))
