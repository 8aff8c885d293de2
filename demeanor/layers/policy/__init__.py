"""The policy layer: rules from a file refuse or redact requests and answers by patterns and check digits.

In: a turn. Out: its events without anything that a rule forbids: answer, refusals from inside and tool calls
are refused or redacted; passages, citations, tool results, prompts and alternatives are masked. A refused
request never reaches the inner layers; an earlier turn that a rule refuses is left out. Log-probabilities
reveal the answer, so they come at the end, or not at all after a redaction. Knows patterns, not meanings.

Matching works on folded text; spans are mapped back to the original. Time is linear in the text, and a piece
of an answer costs what the rules hold back, not what came before.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import merge
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from demeanor.core import registry
from demeanor.core.errors import Problem, RequestError
from demeanor.core.long_text import Folded, off_loop
from demeanor.core.phone_numbers import BEHIND
from demeanor.core.types import (
    Citation,
    Done,
    Event,
    LeftOut,
    Message,
    Passage,
    Prompted,
    PromptRead,
    Refusal,
    Respond,
    Text,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    ToolSpec,
    Trust,
    Turn,
    Unsupported,
)
from demeanor.layers import Kit, timed
from demeanor.layers.policy.rules import PolicySpec, Rule, load, problems_of

BEHAVIOUR = True
BY = "policy"
MAX_CHARS = 2**20  # of one request that rules read; 1 MiB takes them a second or two


class Spec(registry.Spec):
    """The rules file."""

    rules: registry.File = Field("policy.yaml", description="YAML file of rules, beside the stack file")


def check(spec: Spec, root: Path) -> list[Problem]:
    """Return every mistake in the rules file."""
    return problems_of(root / spec.rules, PolicySpec)


def notes(spec: Spec, root: Path) -> list[str]:
    """Return a sentence about the rules for which an answer waits for its end, if there are any."""
    waiting = [rule.name for rule in load(root / spec.rules) if rule.on != "input" and rule.hold == "buffer"]
    if not waiting:
        return []
    return [
        f"policy: a streamed answer is sent when it has ended, for the rules {', '.join(waiting)} (hold: buffer, cues, or a "
        "pattern without a longest match); until then the stream sends keep-alive comments"
    ]


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Apply the rules to requests and answers."""
    rules = load(kit.root / spec.rules)
    input_rules = [r for r in rules if r.on != "output"]
    output_rules = [r for r in rules if r.on != "input"]

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        chars = size(turn) if input_rules else 0
        if chars > MAX_CHARS:
            raise RequestError(
                f"messages: {chars} characters are more than the policy's rules read; wanted at most {MAX_CHARS}. "
                "Shorten the conversation or send it in parts.",
                param="messages",
                code="string_above_max_length",
            )
        outcome, left_out = await off_loop(chars, judge_turn, turn, input_rules)
        if isinstance(outcome, Rule):
            for event in refusal(outcome, "input"):
                yield event
            return
        for event in left_out:
            yield event
        events = inner(outcome)
        async for event in _answer(events, output_rules) if output_rules else events:
            yield event

    return timed(BY, body, inner, kit.clock)


def refusal(rule: Rule, stage: Literal["input", "output"]) -> tuple[Event, ...]:
    """Return the events that end a refused turn."""
    return Refusal(BY, rule.name, rule.reason, rule.reply, stage), Done("content_filter", by=BY)


async def _answer(events: AsyncIterator[Event], rules: Sequence[Rule]) -> AsyncIterator[Event]:
    """Yield an answer as far as it is judged; a refusal ends it."""
    output, late, logprobs = OutputFilter(rules, BY), list[Event](), list[TokenLogprob]()
    async for event in events:
        released: Sequence[Event] = ()
        refused: Rule | None = None
        if isinstance(event, Text):
            logprobs += event.logprobs
            released, refused = await off_loop(len(event.text), output.add, event)
        elif isinstance(event, ToolCalled):
            call = await off_loop(len(event.call.arguments), judge_call, event.call, rules)
            if isinstance(call, Rule):
                refused = call
            else:
                released = [replace(event, call=call)]
        elif isinstance(event, Refusal):
            refused = first([rule for rule in rules if rule.refuses], event.text, event.reason)
            released = [masked(event, rules)]
        elif isinstance(event, Citation | Unsupported):
            late.append(masked(event, rules))
        elif isinstance(event, Done):
            rest, refused = await off_loop(output.waiting, output.finish)
            if logprobs and not output.altered and refused is None:
                kept = await off_loop(len(logprobs) * MANY, allowed, logprobs, rules)
                late.append(Text("", logprobs=kept))
            released = [*rest, *([] if output.altered else late), event]
        else:
            released = [await off_loop(_length(event), masked, event, rules)]
        for each in refusal(refused, "output") if refused else released:
            yield each
        if refused:
            return


MANY = 64  # characters that are read for a token with its alternatives, about


def _length(event: Event) -> int:
    return len(getattr(event, "content", "") or getattr(event, "text", ""))


# ---- texts, turns and calls under rules ----


def hits(rules: Sequence[Rule], text: str) -> Iterator[tuple[int, int, int]]:
    """Yield begin, number of the rule and end of every match in a whole text, in order; overlaps included."""
    folded = Folded(text)
    whole = folded.text

    def of(i: int, rule: Rule) -> Iterator[tuple[int, int, int]]:
        for span in rule.find(whole, 0):
            begin, end = folded.span(*span)
            yield begin, i, end

    return merge(*(of(i, rule) for i, rule in enumerate(rules)))


def first(rules: Sequence[Rule], *texts: str) -> Rule | None:
    """Return the first rule that matches in one of the texts."""
    for text in texts:
        folded = Folded(text).text
        for rule in rules:
            if any(True for _ in rule.find(folded, 0)):
                return rule
    return None


def redacted(text: str, rules: Sequence[Rule]) -> str:
    """Replace matches by the rules' replies; overlapping matches are merged and get the first rule's
    reply."""
    kept, at = list[str](), 0
    for start, i, end in hits(rules, text):
        if start >= at:
            kept += [text[at:start], rules[i].reply]
        at = max(at, end)
    return "".join([*kept, text[at:]])


class OutputFilter:
    """The output rules applied to one answer in pieces."""

    def __init__(self, rules: Sequence[Rule], by: str) -> None:
        self._rules, self._by = rules, by
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
        for i, rule in enumerate(self._rules):
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
        """Store the matches that begin before the horizon; True if one refuses the answer."""
        rule, length, start = self._rules[i], self._folded.lengths[0], self._searched[i]
        if start >= horizon or (length < self._due[i] and not final):
            return False
        base = max(0, start - BEHIND)
        for begin, end in rule.find(self._folded.part(base), start - base):
            begin, end = begin + base, end + base
            if begin >= horizon:
                break
            if rule.hold == "stream" and end == length and not final:
                return False  # it may still become longer
            if rule.refuses:
                return True
            self._hits.append((self._folded.origin(begin), i, self._folded.span(begin, end)[1]))
            self._searched[i] = end
        if rule.hold != "stream":
            self._searched[i] = max(self._searched[i], horizon)
        elif rule.longest is not None:
            self._searched[i] = max(start, length - rule.longest)
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
                released += [*self._pieces(start), Text(self._rules[i].reply, by=self._by)]
                self.altered = True
            self._released = max(self._released, end)
        return [*released, *self._pieces(limit)]

    def _pieces(self, limit: int) -> list[Text]:
        """Return the unreleased original up to `limit`, by the layers that made it."""
        found = []
        while self._makers and self._released < limit:
            end, by = self._makers[0]
            stop = min(end, limit)
            if stop > self._released:
                found.append(Text(self._folded.original_part(self._released, stop), by=by))
                self._released = stop
            if end <= limit:
                self._makers.popleft()
        return found


# ---- requests ----


def size(turn: Turn) -> int:
    """Return the characters of a turn that rules may read; schemas are counted when they are read."""
    texts = [
        len(m.content) + sum(len(c.name) + len(c.arguments) for c in m.tool_calls) for m in turn.messages
    ]
    form = turn.decoding.form
    return sum(texts) + sum(len(t.description) for t in turn.tools) + (len(form.text) if form else 0)


def judge_turn(turn: Turn, rules: Sequence[Rule]) -> tuple[Turn | Rule, tuple[LeftOut, ...]]:
    """Return the redacted turn or the first rule that refuses it, and the earlier turns that were left out.

    A rule reads text of its `trust` or less. The current turn begins with the last user message. An earlier
    one with a message that a rule refuses is not read by the model, and refuses nothing.
    """
    refused = _offered(turn, rules)
    if isinstance(refused, Rule):
        return refused, ()
    turn, left_out = refused, list[LeftOut]()
    users = [i for i, m in enumerate(turn.messages) if m.role == "user"]
    bounds = sorted({0, *users, len(turn.messages)})
    kept: list[Message] = []
    for begin, end in pairwise(bounds):
        outcomes = [
            _message(m, [r for r in rules if m.authority <= r.trust]) for m in turn.messages[begin:end]
        ]
        refusing = [(m, o) for m, o in zip(turn.messages[begin:end], outcomes) if isinstance(o, Rule)]
        is_earlier = begin < (users[-1] if users else 0)
        lasting = next((rule for m, rule in refusing if not is_earlier or m.role in OPERATORS), None)
        if lasting is not None:
            return lasting, ()
        if refusing:
            spared = [o for o in outcomes if isinstance(o, Message) and o.role in OPERATORS]
            rule = refusing[0][1]
            left_out.append(LeftOut(rule.name, rule.reason, end - begin - len(spared)))
            kept += spared
        else:
            kept += [o for o in outcomes if isinstance(o, Message)]
    return replace(turn, messages=tuple(kept)), tuple(left_out)


OPERATORS = frozenset({"system", "developer"})  # their messages belong to no turn


def _offered(turn: Turn, rules: Sequence[Rule]) -> Turn | Rule:
    """Return the turn with redacted tool descriptions, or the rule that refuses its tools or format.

    A caller's tools and output format have a developer's authority; a match in a name or schema always
    refuses, because a redacted one would mean something else.
    """
    rules = [rule for rule in rules if rule.trust >= Trust.DEVELOPER]
    if not rules or not (turn.tools or turn.decoding.form):
        return turn
    tools = list[ToolSpec]()
    for tool in turn.tools:
        description = _text(tool.description, rules)
        refused = first(rules, tool.name, "\n".join(_leaves(tool.parameters)))
        if refused or isinstance(description, Rule):
            return description if isinstance(description, Rule) else refused or turn
        tools.append(replace(tool, description=description))
    form = turn.decoding.form
    texts = [] if form is None else [form.text, "\n".join(_strings(form.text))]
    return first(rules, *texts) or replace(turn, tools=tuple(tools))


def _message(message: Message, rules: Sequence[Rule]) -> Message | Rule:
    """Return a redacted message of the request, or the rule that refuses it."""
    if not rules:
        return message
    content, name = _text(message.content, rules), _text(message.name or "", rules)
    calls = [judge_call(call, rules) for call in message.tool_calls]
    refused = next((x for x in (content, name, *calls) if isinstance(x, Rule)), None)
    if refused is not None or isinstance(content, Rule) or isinstance(name, Rule):
        return refused or message
    return replace(
        message,
        content=content,
        name=message.name and name,
        tool_calls=tuple(c for c in calls if isinstance(c, ToolCall)),
        tool_call_id=message.tool_call_id and opaque(message.tool_call_id, rules),
    )


def _text(text: str, rules: Sequence[Rule]) -> str | Rule:
    """Return a redacted text, or the first rule that refuses it."""
    if not text:
        return text
    refused = first([rule for rule in rules if rule.refuses], text)
    return refused or redacted(text, [rule for rule in rules if not rule.refuses])


def judge_call(call: ToolCall, rules: Sequence[Rule]) -> ToolCall | Rule:
    """Return a redacted tool call, or the rule that refuses it.

    A match in the name, or one that JSON escapes hide, always refuses; an id that matches is replaced.
    """
    arguments = _text(call.arguments, rules)
    if isinstance(arguments, Rule):
        return arguments
    refused = first(rules, call.name, "\n".join(_strings(arguments)))
    return refused or replace(call, id=opaque(call.id, rules), arguments=arguments)


def opaque(id_: str, rules: Sequence[Rule]) -> str:
    """Return an id without any match: itself, or letters that depend on it."""
    if first(rules, id_) is None:
        return id_
    return "call_" + "".join(chr(ord("a") + byte % 26) for byte in hashlib.sha256(id_.encode()).digest()[:16])


def _strings(text: str) -> list[str]:
    """Return every string and number in JSON text, keys included."""
    try:
        return _leaves(json.loads(text))
    except (ValueError, RecursionError):
        return []


def _leaves(value: Any) -> list[str]:
    """Return every string and number of a JSON value, keys included."""
    found, left = [], [value]
    while left:
        item: Any = left.pop()
        if isinstance(item, Mapping):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            left += item
        elif item is not None and not isinstance(item, bool):
            found.append(str(item))
    return found


# ---- what leaves beside the answer ----


def masked(event: Event, rules: Sequence[Rule]) -> Event:
    """Mask an event about the way to the answer: passages, citations, tool results, prompts and
    refusals by inner layers."""

    def mask(text: str) -> str:
        return redacted(text, rules) if text else text

    if isinstance(event, Passage):
        heading = mask(event.heading)
        return replace(
            event, id=mask(event.id), text=mask(event.text), source=mask(event.source), heading=heading
        )
    if isinstance(event, Refusal):
        return replace(event, text=mask(event.text), reason=mask(event.reason))
    if isinstance(event, Citation):
        return replace(event, passage_id=mask(event.passage_id), cited_text=mask(event.cited_text))
    if isinstance(event, Unsupported):
        return replace(event, passage_id=mask(event.passage_id))
    if isinstance(event, ToolResult):
        call_id = opaque(event.call_id, rules)
        return replace(event, call_id=call_id, name=mask(event.name), content=mask(event.content))
    if isinstance(event, ToolDecision):
        call_id = event.call_id and opaque(event.call_id, rules)
        names = tuple(mask(name) for name in event.tools)
        return replace(event, tools=names, call_id=call_id, detail=mask(event.detail))
    if isinstance(event, Prompted):
        return replace(event, messages=tuple(_masked(m, mask) for m in event.messages))
    if isinstance(event, PromptRead):
        kept = alternatives(list(zip(event.tokens, event.top)), rules)
        return replace(event, top=tuple(kept))
    return event


def _masked(message: Message, mask: Callable[[str], str]) -> Message:
    calls = tuple(replace(c, name=mask(c.name), arguments=mask(c.arguments)) for c in message.tool_calls)
    return replace(
        message, content=mask(message.content), name=message.name and mask(message.name), tool_calls=calls
    )


Alternatives = tuple[tuple[str, float], ...]
CONTEXT = 64  # characters of the answer before a token that its alternatives are read with


def allowed(logprobs: Sequence[TokenLogprob], rules: Sequence[Rule]) -> tuple[TokenLogprob, ...]:
    """Return log-probabilities without the alternatives that a rule forbids."""
    kept = alternatives([(t.token, t.top) for t in logprobs], rules)
    return tuple(replace(token, top=top) for token, top in zip(logprobs, kept))


def alternatives(tokens: Sequence[tuple[str, Alternatives]], rules: Sequence[Rule]) -> list[Alternatives]:
    """Return each token's alternatives without those that a rule matches.

    An alternative is read behind the text before its token, and in a row with those of the same rank.
    """
    places = [(i, k) for i, (_, top) in enumerate(tokens) for k in range(len(top))]
    if not places:
        return [top for _, top in tokens]
    before, text = list[str](), ""
    for token, _ in tokens:
        before.append(text)
        text = (text + token)[-CONTEXT:]
    one = ((i, k, before[i], tokens[i][1][k][0]) for i, k in places if tokens[i][1][k][0] != tokens[i][0])
    rows = ((i, k, "", tokens[i][1][k][0]) for k, i in sorted((k, i) for i, k in places))
    wrong = _forbidden(one, "\n\n", rules) | _forbidden(rows, "", rules)
    return [tuple(a for k, a in enumerate(top) if (i, k) not in wrong) for i, (_, top) in enumerate(tokens)]


def _forbidden(
    pieces: Iterator[tuple[int, int, str, str]], between: str, rules: Sequence[Rule]
) -> set[tuple[int, int]]:
    """Return the places (token, rank) of pieces that a match touches, in all pieces joined."""
    folded, owners, texts, at = Folded(), list[tuple[int, int, int, int]](), list[str](), 0
    for i, k, context, piece in pieces:
        at += len(context)
        owners.append((at, at + len(piece), i, k))
        at += len(piece) + len(between)
        texts += [context, piece, between]
    folded.add("".join(texts))
    whole, local = folded.text, [rule for rule in rules if rule.weigh is None]
    found = sorted(folded.span(*span) for rule in local for span in rule.find(whole, 0))
    wrong, first_owner = set[tuple[int, int]](), 0
    for begin, end in found:
        while first_owner < len(owners) and owners[first_owner][1] <= begin:
            first_owner += 1
        at = first_owner
        while at < len(owners) and owners[at][0] < end:
            wrong.add(owners[at][2:])
            at += 1
    return wrong
