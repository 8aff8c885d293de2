"""Judges an answer while it grows: what may leave, what is redacted, and whether it is refused.

In: pieces of text. Out: pieces that may leave. A place is settled once every match that could begin there would show in full, so
the verdict is that on the whole text, however it was cut, and no character of a match leaves before it is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from demeanor.layers._detectors import Span
from demeanor.layers._folding import Folded
from demeanor.layers._rules import Rule
from demeanor.types import Text


@dataclass(frozen=True, slots=True)
class Hit:
    """A rule that matched: which, and the span of the original text."""

    rule: Rule
    span: Span


def hits(rules: Sequence[Rule], text: str) -> list[Hit]:
    """Every match of every rule in a whole text, rule by rule."""
    folded = Folded(text)
    found = []
    for rule in rules:
        at = 0
        while (span := rule.find(folded.text, at)) is not None:
            found.append(Hit(rule, folded.span(*span)))
            at = span[1]
    return found


def redacted(text: str, found: Sequence[Hit]) -> str:
    """The text with the replies of the rules in place of their matches; overlapping matches are one, replaced by the first's."""
    kept, at = [], 0
    for hit in sorted(found, key=lambda h: h.span[0]):
        start, end = hit.span
        if start >= at:
            kept += [text[at:start], hit.rule.reply]
        at = max(at, end)
    return "".join([*kept, text[at:]])


class Judge:
    """The output rules at work on one answer."""

    def __init__(self, rules: Sequence[Rule], by: str) -> None:
        self._rules, self._by = rules, by
        self._folded = Folded()
        self._searched = [0] * len(rules)  # folded; where each rule goes on searching
        self._hits: list[Hit] = []  # redactions that have not left yet
        self._left = 0  # original characters that have left or were replaced
        self._makers: list[tuple[int, str]] = []
        self.altered = False

    def add(self, text: Text) -> tuple[list[Text], Rule | None]:
        """Take a piece: what may leave now, and the rule that refuses the answer, if one does."""
        self._folded.add(text.text)
        self._makers.append((len(self._folded.original), text.by))
        return self._settle(final=False)

    def finish(self) -> tuple[list[Text], Rule | None]:
        """The answer has ended: the rest of it, or the rule that refuses it."""
        return self._settle(final=True)

    def _settle(self, *, final: bool) -> tuple[list[Text], Rule | None]:
        settled = len(self._folded.text)
        for i, rule in enumerate(self._rules):
            here = len(self._folded.text) if final else self._horizon(rule)
            refused = self._search(i, here, final)
            if refused:
                return [], rule
            if rule.hold != "stream":
                settled = min(settled, here)
        return self._release(len(self._folded.original) if final else self._folded.before(settled)), None

    def _horizon(self, rule: Rule) -> int:
        """Up to where matches of this rule begin that show in full; a streamed answer is judged as far as it goes."""
        length = len(self._folded.text)
        return {"buffer": 0, "window": max(0, length - rule.window), "stream": length}[rule.hold]

    def _search(self, i: int, horizon: int, final: bool) -> bool:
        """Note the matches that begin before the horizon; true if one refuses the answer."""
        rule, text = self._rules[i], self._folded.text
        while self._searched[i] < horizon:
            span = rule.find(text, self._searched[i])
            if span is not None and rule.hold == "stream" and span[1] == len(text) and not final:
                return False  # whether it is a match may depend on what comes next
            if span is None or span[0] >= horizon:
                self._searched[i] = self._searched[i] if rule.hold == "stream" else horizon
                return False
            if rule.refuses:
                return True
            self._hits.append(Hit(rule, self._folded.span(*span)))
            self._searched[i] = span[1]
        return False

    def _release(self, limit: int) -> list[Text]:
        """Let the original leave up to `limit`, redactions that begin before it in place."""
        leaving: list[Text] = []
        for hit in sorted(
            (h for h in self._hits if h.span[0] < limit), key=lambda h: (h.span[0], self._rules.index(h.rule))
        ):
            self._hits.remove(hit)
            start, end = hit.span
            if start >= self._left:
                leaving += [*self._pieces(start), Text(hit.rule.reply, by=self._by)]
                self.altered = True
            self._left = max(self._left, end)
        return [*leaving, *self._pieces(limit)]

    def _pieces(self, limit: int) -> list[Text]:
        """What has not left of the original up to `limit`, by its makers."""
        found = []
        while self._makers and self._left < limit:
            end, by = self._makers[0]
            stop = min(end, limit)
            if stop > self._left:
                found.append(Text(self._folded.original[self._left : stop], by=by))
                self._left = stop
            if end <= limit:
                self._makers.pop(0)
        return found
