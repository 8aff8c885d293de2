"""How good a policy is: its rules' own tests, what each rule finds and wrongly finds on labelled texts, and what it costs.

In: a policy file, LabelledTexts, a Kit. Out: one `PolicyQuality` tree. Whole requests go through the layer that is served; a rule alone
is tried on each text. A threshold is chosen on the half `tune` and measured on the half `report`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from demeanor.core.errors import SpecError
from demeanor.core.long_text import Folded
from demeanor.core.types import (
    Decoding,
    Done,
    Event,
    Message,
    Refusal,
    RuleHit,
    Stage,
    Text,
    Timing,
    ToolCall,
    ToolCalled,
    ToolSpec,
    Trust,
    Turn,
)
from demeanor.evaluation import statistics
from demeanor.evaluation.labelled_texts import Half, LabelledText, group_numbers
from demeanor.evaluation.policy_training import Show, threshold_for
from demeanor.evaluation.statistics import Auroc, Estimate, Floats
from demeanor.layers import Kit, compose, policy
from demeanor.layers.policy.classifier import load_classifier
from demeanor.layers.policy.matching import Rule, bound, declared, rule
from demeanor.layers.policy.rules import RuleSpec
from demeanor.layers.policy.texts import first, judge_text

Bools: TypeAlias = npt.NDArray[np.bool_]
CURVE = 12  # thresholds of a curve


@dataclass(frozen=True, slots=True)
class FailedTest:
    """A test of a rule that did not come out as wanted."""

    rule: str
    number: int
    text: str
    wanted: str
    got: str


@dataclass(frozen=True, slots=True)
class Threshold:
    """One threshold: the shares of texts with the label, and without it, that reach it."""

    threshold: float
    found: float
    false: float


@dataclass(frozen=True, slots=True)
class ChosenThreshold:
    """A threshold for a wanted false-positive rate, chosen on one half and measured on the other."""

    wanted: float
    threshold: float
    found: Estimate
    false: Estimate


@dataclass(frozen=True, slots=True)
class RuleQuality:
    """One rule on texts with and without its label; None: there are none of this kind, or the rule has no score."""

    rule: str
    label: str
    threshold: float | None
    found: Estimate | None
    false: Estimate | None
    ranking: Auroc | None
    chosen: ChosenThreshold | None
    curve: tuple[Threshold, ...]
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True, slots=True)
class SourceQuality:
    """What the whole policy does to the texts of one source: the turn ended, a text was changed, or only noted."""

    source: str
    stage: Stage
    labelled: bool
    stopped: Estimate
    acted: Estimate
    noted: Estimate
    by: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class PolicyQuality:
    """All measurements of a policy file."""

    file: str
    half: Half
    num_tests: int
    failed: tuple[FailedTest, ...]
    rules: tuple[RuleQuality, ...]
    sources: tuple[SourceQuality, ...]
    texts: int
    request_p50_ms: float
    request_p95_ms: float


async def measure(
    path: Path,
    rows: Sequence[LabelledText],
    kit: Kit,
    *,
    half: Half = "all",
    labels: dict[str, str] | None = None,
    false_positives: float = 0.01,
    stage: Stage | None = None,
    show: Show = lambda what, done, of: None,
) -> PolicyQuality:
    """Measure a policy file; `labels` says which label a rule is about, where its name does not."""
    specs = declared(path)
    failed = await own_tests(specs, kit)
    chosen = [row for row in rows if half in ("all", row.half)]
    known = {label for row in rows for label in row.labels}
    found = list[RuleQuality]()
    for i, spec in enumerate(specs):
        show("rules", i, len(specs))
        if chosen and not spec.reads_calls:
            label = (labels or {}).get(spec.name) or label_of(spec, known)
            found.append(await _rule_quality(spec, rule(spec, kit), label, rows, half, false_positives))
    sources, times = await _requests(path, chosen, kit, stage, show)
    p50, p95 = _percentiles(times)
    tests = sum(len(spec.tests or ()) for spec in specs)
    return PolicyQuality(
        str(path), half, tests, tuple(failed), tuple(found), tuple(sources), len(chosen), p50, p95
    )


def rule_names(path: Path) -> list[str]:
    """Return the names of a file's rules; raises SpecError with every mistake in it and in the files that it names."""
    if problems := policy.check(policy.Spec(rules=str(path.resolve())), path.parent):
        raise SpecError(problems)
    return [spec.name for spec in declared(path)]


# ---- a rule's own tests ----


async def own_tests(specs: Sequence[RuleSpec], kit: Kit) -> list[FailedTest]:
    """Run the tests that stand beside the rules."""
    failed = list[FailedTest]()
    for spec in specs:
        one = rule(spec, kit)
        for number, test in enumerate(spec.tests or ()):
            (ready,) = await bound([one], lambda _, text=test.text: [text])  # type: ignore[misc]
            got: str = one.action if first([ready], test.text) else "pass"
            if why := ready.failed(Folded(test.text).text):
                got = f"no score: {why}"
            leaves = judge_text(test.text, [ready]) if ready.replaces else None
            if got == test.want and test.leaves is not None and leaves != test.leaves:
                failed.append(FailedTest(spec.name, number, test.text, repr(test.leaves), repr(leaves)))
            elif got != test.want:
                failed.append(FailedTest(spec.name, number, test.text, test.want, got))
    return failed


# ---- one rule ----


def label_of(spec: RuleSpec, known: set[str]) -> str:
    """Return the label that a rule is about: that of its classifier, its detector's name, or its own."""
    if spec.classifier is not None:
        labels = load_classifier(Path(spec.classifier)).labels
        return spec.label or labels[0]
    if spec.detector is not None:
        return spec.detector
    return spec.name if spec.name in known else next((x for x in sorted(known) if x in spec.name), spec.name)


async def _rule_quality(
    spec: RuleSpec, one: Rule, label: str, rows: Sequence[LabelledText], half: Half, rate: float
) -> RuleQuality:
    """Measure a rule on texts with its label, and on those without it: harmless ones, and all of sources that know the label."""
    sources = {row.source for row in rows if label in row.labels}
    used = [row for row in rows if label in row.labels or not row.labels or row.source in sources]
    is_N = np.array([label in row.labels for row in used], bool)
    scores_N, times = np.zeros(len(used)), list[float]()
    for n, row in enumerate(used):
        folded = Folded(row.text).text
        began = time.perf_counter()
        (ready,) = await bound([one], lambda _, text=row.text: [text])  # type: ignore[misc]
        scores_N[n] = ready.weigh(folded) if ready.weigh else float(any(True for _ in ready.find(folded, 0)))
        times.append(1000 * (time.perf_counter() - began))
    threshold = one.threshold if spec.scored else 0.5
    in_half = np.array([half in ("all", row.half) for row in used], bool)
    groups = np.array(group_numbers(row.group for row in used))
    tune = np.array([row.half == "tune" for row in used], bool)
    p50, p95 = _percentiles(times)
    return RuleQuality(
        spec.name,
        label,
        one.threshold if spec.scored else None,
        _rate(scores_N >= threshold - 1e-9, groups, is_N & in_half),
        _rate(scores_N >= threshold - 1e-9, groups, ~is_N & in_half),
        statistics.ranking(scores_N[in_half], is_N[in_half], groups[in_half])
        if spec.scored and (is_N & in_half).any() and (~is_N & in_half).any()
        else None,
        _chosen(scores_N, is_N, tune, groups, rate) if spec.scored and one.has_probability else None,
        _curve(scores_N[in_half], is_N[in_half]) if spec.scored else (),
        p50,
        p95,
    )


def _rate(hit_N: Bools, groups_N: npt.NDArray[Any], where_N: Bools) -> Estimate | None:
    values_N = hit_N[where_N].astype(float)
    return statistics.mean(values_N, groups_N[where_N]) if len(values_N) else None


def _chosen(
    scores_N: Floats, is_N: Bools, tune_N: Bools, groups: npt.NDArray[Any], rate: float
) -> ChosenThreshold | None:
    """Choose the least threshold with at most this rate of false positives on one half, and measure it on the other."""
    if not (~is_N & tune_N).any():
        return None
    threshold = threshold_for(scores_N[~is_N & tune_N], rate)
    hit_N = scores_N >= threshold
    found, false = _rate(hit_N, groups, is_N & ~tune_N), _rate(hit_N, groups, ~is_N & ~tune_N)
    return None if found is None or false is None else ChosenThreshold(rate, threshold, found, false)


def _curve(scores_N: Floats, is_N: Bools) -> tuple[Threshold, ...]:
    """Return thresholds from lax to strict, evenly spread over the scores of texts with the label."""
    if not is_N.any() or is_N.all():
        return ()
    at = np.unique(np.quantile(scores_N[is_N], np.linspace(0, 1, CURVE)))
    return tuple(
        Threshold(float(t), float((scores_N[is_N] >= t).mean()), float((scores_N[~is_N] >= t).mean()))
        for t in at
    )


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    return (float(np.percentile(times, 50)), float(np.percentile(times, 95))) if times else (0.0, 0.0)


# ---- whole requests ----

ANSWER = "Thank you, that is a good question. Here is what I know about it, in two sentences."


async def _requests(
    path: Path, rows: Sequence[LabelledText], kit: Kit, stage: Stage | None, show: Show
) -> tuple[list[SourceQuality], list[float]]:
    """Send every text through the layer, at its stage; return what happened by source, and the layer's own time in ms."""
    spec = policy.Spec(rules=str(path.resolve()))
    told: dict[tuple[str, Stage, bool], list[tuple[LabelledText, list[Event]]]] = {}
    times, answer = list[float](), list[Event]()

    async def scripted(turn: Turn) -> AsyncIterator[Event]:
        for event in answer:
            yield event

    respond = compose([(spec, policy)], scripted, replace(kit, shared={}))  # no score is remembered yet
    for n, row in enumerate(rows):
        if n % 50 == 0:
            show("requests", n, len(rows))
        here = row.stage or stage or "input"
        turn, answer[:] = request_of(row.text, here)
        events = [event async for event in respond(turn)]
        times.append(sum(event.ms for event in events if isinstance(event, Timing)))
        told.setdefault((row.source, here, bool(row.labels)), []).append((row, events))
    return [_source(*key, some) for key, some in told.items()], times


def request_of(text: str, stage: Stage) -> tuple[Turn, list[Event]]:
    """Return a turn and an answer in which `text` stands at a stage."""
    user, decoding = Message("user", "What does it say?"), Decoding()
    plain: list[Event] = [Text(ANSWER), Done("stop")]
    match stage:
        case "input":
            return Turn((Message("user", text),), decoding), plain
        case "retrieved":
            return Turn((Message("data", text, name="page", trust=Trust.NONE), user), decoding), plain
        case "tool_result":
            call = ToolCall("1", "look_up", "{}")
            asked = (user, Message("assistant", "", tool_calls=(call,)))
            return Turn((*asked, Message("tool", text, tool_call_id="1", name="look_up")), decoding), plain
        case "tool_definition":
            return Turn((user,), decoding, tools=(ToolSpec("look_up", text, {}),)), plain
        case "tool_call":
            return Turn((user,), decoding), [ToolCalled(ToolCall("1", "look_up", text)), Done("tool_calls")]
        case "output":
            return Turn((user,), decoding), [Text(text), Done("stop")]


def _source(
    source: str, stage: Stage, labelled: bool, some: Sequence[tuple[LabelledText, list[Event]]]
) -> SourceQuality:
    groups = group_numbers(row.group for row, _ in some)
    hits = [[event for event in events if isinstance(event, RuleHit)] for _, events in some]
    stopped = [
        any(isinstance(event, Refusal) for event in events)
        or any(hit.outcome == "redirected" for hit in mine)
        for (_, events), mine in zip(some, hits)
    ]
    noted = [any(hit.outcome in ("flagged", "asked", "failed_open") for hit in mine) for mine in hits]
    acted = [
        s or any(hit.outcome in ("redacted", "rewritten") for hit in mine) for s, mine in zip(stopped, hits)
    ]
    by: dict[str, int] = {}
    for mine in hits:
        for name in {hit.rule for hit in mine}:
            by[name] = by.get(name, 0) + 1
    three = [statistics.mean(np.asarray(each, float), groups) for each in (stopped, acted, noted)]
    return SourceQuality(source, stage, labelled, three[0], three[1], three[2], tuple(sorted(by.items())))
