"""The answer as far as it is judged: pieces are held until no rule can match in them any more, and a rule may end the turn.

In: the events of the inner layers. Out: the same without anything that a rule forbids. Log-probabilities reveal the answer,
so they come at the end, or not at all after a redaction. A piece costs what the rules hold back, not what came before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Sequence

from demeanor.core.long_text import Folded, off_loop
from demeanor.core.phone_numbers import BEHIND
from demeanor.core.types import (
    Citation,
    Done,
    Event,
    Passage,
    Refusal,
    Stage,
    Text,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    ToolResult,
    Unsupported,
)
from demeanor.layers.policy.hit_log import HitLog
from demeanor.layers.policy.masks import allowed, masked
from demeanor.layers.policy.matching import Rule, bound
from demeanor.layers.policy.requests import texts_of_call
from demeanor.layers.policy.texts import TextPlace, first, judge_call

BY = "policy"
MANY = 64  # characters that are read for a token with its alternatives, about


def ending(rule: Rule, stage: Stage) -> tuple[Event, ...]:
    """Return the events that end a turn: a refusal, or a safe answer that counts as one of the assistant's."""
    if rule.action == "redirect":
        return Text(rule.reply, by=BY), Done("stop", by=BY)
    return Refusal(BY, rule.name, rule.reason, rule.reply, stage), Done("content_filter", by=BY)


class OutputJudge:
    """All rules that read what leaves, applied to the events of one turn."""

    def __init__(self, rules: Sequence[Rule], log: HitLog) -> None:
        self._all = [rule for rule in rules if rule.enforces]
        self._rules = [rule for rule in self._all if "output" in rule.stages]
        self._noting = [rule for rule in rules if not rule.enforces and "output" in rule.stages]
        self._log = log
        self._output = OutputFilter(self._rules, BY, log)
        self._late, self._logprobs = list[Event](), list[TokenLogprob]()
        self._said: list[str] = []
        self.ended = False

    async def add(self, event: Event) -> Sequence[Event]:
        """Return what may leave now."""
        if isinstance(event, Text):
            return await self._text(event)
        if isinstance(event, ToolCalled):
            return await self._call(event)
        if isinstance(event, Refusal):
            texts = (event.text, event.reason)
            rules = await bound([rule for rule in self._rules if rule.refuses], lambda rule: texts)
            stopping = first(rules, *texts)
            return await self._end(stopping, "\n".join(texts)) if stopping else [await self._masked(event)]
        if isinstance(event, Citation | Unsupported):
            self._late.append(masked(event, self._rules))
            return []
        if isinstance(event, Done):
            return await self._done(event)
        return [await self._masked(event)]

    async def _text(self, event: Text) -> Sequence[Event]:
        self._logprobs += event.logprobs
        if self._noting:
            self._said.append(event.text)
        if not self._rules:
            return [event]
        released, stopping = await off_loop(len(event.text), self._output.add, event)
        return await self._end(stopping, self._output.text) if stopping else released

    async def _call(self, event: ToolCalled) -> Sequence[Event]:
        place = TextPlace("output", "tool call", self._log)
        rules = await bound(self._rules, lambda rule: texts_of_call(event.call))
        call = await off_loop(len(event.call.arguments), judge_call, event.call, rules, place)
        if isinstance(call, Rule):
            return self._closed(call)
        return [self._with(event, call)]

    @staticmethod
    def _with(event: ToolCalled, call: ToolCall) -> ToolCalled:
        return ToolCalled(call, event.by, event.approval)

    async def _done(self, event: Done) -> Sequence[Event]:
        text = self._output.text
        await self._output.bind(text)
        self._log.went_on(self._output.rules, "output", "answer")
        rest, stopping = await off_loop(self._output.waiting, self._output.finish)
        if stopping is not None:
            return await self._end(stopping, text)
        await self._note()
        if self._output.altered:
            return [*rest, event]
        if self._rules and self._logprobs:
            kept = await off_loop(len(self._logprobs) * MANY, allowed, self._logprobs, self._rules)
            self._late.append(Text("", logprobs=kept))
        return [*rest, *self._late, event]

    async def _note(self) -> None:
        """Flag the answer."""
        said = "".join(self._said)
        rules = await bound(self._noting, lambda rule: [said])
        for rule in rules if said else ():
            await off_loop(len(said), self._log.noted, rule, "output", said, "answer")
        self._log.went_on(rules, "output", "answer")

    async def _masked(self, event: Event) -> Event:
        """Mask an event about the way to the answer; what is hidden from the model is hidden here too."""
        stage: Stage = (
            "retrieved"
            if isinstance(event, Passage)
            else "tool_result"
            if isinstance(event, ToolResult)
            else "output"
        )
        rules = [rule for rule in self._all if rule.stages & {"output", stage}]
        if not rules:
            return event
        text = shown_text(event)
        rules = await bound(rules, lambda rule: [text])
        place = TextPlace(stage, "trace", self._log, masked=True)
        return await off_loop(len(text), masked, event, rules, place)

    async def _end(self, rule: Rule, text: str) -> Sequence[Event]:
        await off_loop(len(text), self._log.ended, rule, "output", text, "answer")
        return self._closed(rule)

    def _closed(self, rule: Rule) -> Sequence[Event]:
        self.ended = True
        return ending(rule, "output")


def shown_text(event: Event) -> str:
    """Return the text of an event that is long, if it has one."""
    return getattr(event, "content", "") or getattr(event, "text", "")


async def judged_answer(
    events: AsyncIterator[Event], rules: Sequence[Rule], log: HitLog
) -> AsyncIterator[Event]:
    """Yield an answer as far as it is judged; a rule may end it. Hits come before the end."""
    judge = OutputJudge(rules, log)
    async for event in events:
        for each in await judge.add(event):
            if isinstance(each, Done):
                for hit in log.events():
                    yield hit
            yield each
        if judge.ended:
            return


class OutputFilter:
    """The output rules applied to one answer in pieces."""

    def __init__(self, rules: Sequence[Rule], by: str, log: HitLog | None = None) -> None:
        self.rules, self._by, self._log = list(rules), by, log
        self._sent = 0  # characters that have left, replacements included
        self._folded = Folded()
        self._searched = [0] * len(rules)  # folded position from which each rule searches on
        self._due = [0] * len(rules)  # folded length from which on a rule without a longest match searches
        self._hits: list[tuple[int, int, int]] = []  # begin, rule and end of redactions not released yet
        self._released = 0  # original characters that were released or replaced
        self._makers: deque[tuple[int, str]] = deque()  # end of a piece, and the layer that made it
        self.altered = False

    @property
    def waiting(self) -> int:
        """Characters that have not left."""
        return self._folded.lengths[1] - self._released

    @property
    def text(self) -> str:
        """The original answer so far."""
        return self._folded.original

    async def bind(self, text: str) -> None:
        """Ask the models of rules that ask one about the whole answer, before it is finished."""
        self.rules = await bound(self.rules, lambda rule: [text])

    def add(self, text: Text) -> tuple[list[Text], Rule | None]:
        """Add a piece; returns what may be released now, and the rule that refuses the answer, if any."""
        self._folded.add(text.text)
        self._makers.append((self._folded.lengths[1], text.by))
        return self._judge(final=False)

    def finish(self) -> tuple[list[Text], Rule | None]:
        """End the answer; returns the rest of it, or the rule that refuses it."""
        return self._judge(final=True)

    def _judge(self, *, final: bool) -> tuple[list[Text], Rule | None]:
        judged, whole = self._folded.lengths
        for i, rule in enumerate(self.rules):
            horizon = self._folded.lengths[0] if final else self._horizon(rule)
            if self._search(i, horizon, final):
                return [], rule
            if rule.hold != "stream":
                judged = min(judged, horizon)
        return self._release(whole if final else self._folded.before(judged)), None

    def _horizon(self, rule: Rule) -> int:
        """Return the position before which all matches of a rule that begin there are complete."""
        length = self._folded.lengths[0]
        return {"buffer": 0, "window": max(0, length - rule.window), "stream": length}[rule.hold]

    def _search(self, i: int, horizon: int, final: bool) -> bool:
        """Store the matches that begin before the horizon; True if one refuses the answer. What is let through is not searched again:
        a part of it might be a match."""
        rule, length, start = self.rules[i], self._folded.lengths[0], self._searched[i]
        if start >= horizon or (length < self._due[i] and not final):
            return False
        base = max(0, start - BEHIND)
        text = self._folded.part(base)
        for begin, end in rule.matches(text, start - base):
            passes = rule.allows(text[begin:end])
            begin, end = begin + base, end + base
            if begin >= horizon:
                break
            if rule.hold == "stream" and end == length and not final:
                return False  # it may still become longer
            if rule.refuses and not passes:
                return True
            if not passes:
                self._hits.append((self._folded.origin(begin), i, self._folded.span(begin, end)[1]))
            self._searched[i] = end
        if rule.hold != "stream":
            self._searched[i] = max(self._searched[i], horizon)
        elif rule.longest is not None:
            self._searched[i] = max(self._searched[i], length - rule.longest)
        else:
            self._due[i] = length + length // 64  # a match may begin anywhere: search when it has grown
        return False

    def _release(self, limit: int) -> list[Text]:
        """Release the original up to `limit`, with redactions that begin before it applied."""
        if limit <= self._released:
            return []
        released: list[Text] = []
        due = sorted(hit for hit in self._hits if hit[0] < limit)
        self._hits = [hit for hit in self._hits if hit[0] >= limit]
        for start, i, end in due:
            if start >= self._released:
                released += [*self._pieces(start), self._replaced(i, start, end)]
                self.altered = True
            self._released = max(self._released, end)
        return [*released, *self._pieces(limit)]

    def _replaced(self, i: int, start: int, end: int) -> Text:
        """Return what stands instead of a match."""
        put = self.rules[i].replacement(self._folded.original_part(start, end))
        if self._log is not None:
            span, text = (self._sent, self._sent + len(put)), self.text if self.rules[i].weigh else ""
            self._log.replaced(self.rules[i], "output", "answer", span, text, masked=False)
        self._sent += len(put)
        return Text(put, by=self._by)

    def _pieces(self, limit: int) -> list[Text]:
        """Return the unreleased original up to `limit`, by the layers that made it."""
        found = []
        while self._makers and self._released < limit:
            end, by = self._makers[0]
            stop = min(end, limit)
            if stop > self._released:
                found.append(Text(self._folded.original_part(self._released, stop), by=by))
                self._sent += stop - self._released
                self._released = stop
            if end <= limit:
                self._makers.popleft()
        return found
