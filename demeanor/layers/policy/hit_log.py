"""What rules did in one turn, as events: written where a match is acted on, so that what is logged is what happened.

In: a rule, the stage, the text and the spans. Out: `RuleHit`s without any of the text. Nothing that only looked is logged.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.core.long_text import Folded
from demeanor.core.phone_numbers import Span
from demeanor.core.types import Outcome, RuleHit, Stage
from demeanor.layers.policy.matching import Rule

MAX_SPANS = 100  # of one hit
ENDINGS: dict[str, Outcome] = {"refuse": "blocked", "redirect": "redirected"}
REPLACED: dict[str, Outcome] = {"redact": "redacted", "rewrite": "rewritten"}


class HitLog:
    """The hits of one turn that no event has told yet; one for each rule, stage, part and outcome."""

    def __init__(self) -> None:
        self._hits: dict[tuple[str, str, str, str], RuleHit] = {}

    def ended(self, rule: Rule, stage: Stage, text: str, part: str = "") -> None:
        """The turn ends because the rule matched in `text`, or because it had no score for it."""
        folded = Folded(text)
        failed = rule.failed(folded.text)
        outcome: Outcome = "failed_closed" if failed else ENDINGS[rule.action]
        spans = [] if failed else [folded.span(*span) for span in _some(rule, folded.text)]
        self._add(rule, stage, outcome, part, spans, text, failed)

    def replaced(self, rule: Rule, stage: Stage, part: str, span: Span, text: str, *, masked: bool) -> None:
        """A match was replaced; `span` is where the replacement stands in the text that goes on."""
        failed = rule.failed(Folded(text).text) if rule.failures else ""
        outcome: Outcome = (
            "failed_closed" if failed else "masked" if masked else REPLACED.get(rule.action, "masked")
        )
        self._add(rule, stage, outcome, part, [span], text, failed)

    def noted(self, rule: Rule, stage: Stage, text: str, part: str = "") -> None:
        """The rule flags the text or asks a person about it, if it matches."""
        folded = Folded(text)
        failed = rule.failed(folded.text)
        spans = [folded.span(*span) for span in _some(rule, folded.text)]
        if spans:
            outcome: Outcome = "failed_closed" if failed else "flagged"
            self._add(rule, stage, outcome, part, [] if failed else spans, text, failed)

    def marked(self, rule: Rule, stage: Stage, part: str, text: str) -> None:
        """The rule flags a call or asks a person about it."""
        failed = rule.failed(Folded(text).text)
        outcome: Outcome = "asked" if rule.action == "ask" else "failed_closed" if failed else "flagged"
        self._add(rule, stage, outcome, part, [], text, failed)

    def went_on(self, rules: Sequence[Rule], stage: Stage, part: str = "") -> None:
        """Note the rules that had no score for some text and let it pass."""
        for rule in rules:
            why = next(iter((rule.failures or {}).values()), "")
            if rule.fails_open and why:
                self._add(rule, stage, "failed_open", part, [], "", why)

    def events(self) -> list[RuleHit]:
        """Return the hits since the last call."""
        found, self._hits = list(self._hits.values()), {}
        return found

    def _add(
        self,
        rule: Rule,
        stage: Stage,
        outcome: Outcome,
        part: str,
        spans: Sequence[Span],
        text: str,
        failed: str,
    ) -> None:
        key = (rule.name, stage, part, outcome)
        score = rule.weigh(Folded(text).text) if rule.weigh and text and not failed else None
        known = self._hits.get(key)
        every = (*(known.spans if known else ()), *spans)[:MAX_SPANS]
        reason = f"{rule.reason} (no score: {failed})" if failed else rule.reason
        if known is not None and known.score is not None:
            score = known.score if score is None else max(score, known.score)
        self._hits[key] = RuleHit(rule.name, stage, outcome, reason, part, every, score)


def _some(rule: Rule, folded: str) -> list[Span]:
    found = list[Span]()
    for span in rule.find(folded, 0):
        found.append(span)
        if len(found) == MAX_SPANS:
            break
    return found
