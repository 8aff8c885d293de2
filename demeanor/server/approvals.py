"""Approvals of tool calls: what a client gets with an answer that waits for a person, and the check of what it sends back.

In: a turn with its events; later a token with decisions. Out: a token; later the turn with decisions that the tools layer may
trust. A token is a random text that says nothing. What it stands for is kept here: it holds once, until it expires, for one user and
key, variant, stack and conversation, and exactly the calls that were shown; and the rounds before the calls.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from demeanor.core.errors import DemeanorError, RequestError
from demeanor.core.types import (
    Approval,
    Approvals,
    Event,
    Message,
    Messages,
    Respond,
    Text,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    Trust,
    Turn,
)
from demeanor.server.assistant import ApprovalStore
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import Body
from demeanor.store.waiting_approvals import TOLD_S, KeptApproval

MAX_TOKEN, MAX_DECISIONS = 128, 128
TIMEOUT_S = 900.0
MOST_CHARS = 64 * 2**20  # of all that one process remembers


class CallDecision(Body):
    """A person's decision on one call."""

    call_id: Annotated[str, Field(min_length=1, max_length=128)]
    approve: bool
    reason: str | None = Field(None, max_length=1000, description="told to the model with a denial")


class ApprovalField(Body):
    """A person's decisions on the calls of an earlier answer."""

    token: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN)]
    decisions: list[CallDecision] = Field(min_length=1, max_length=MAX_DECISIONS)


@dataclass
class LocalApprovals:
    """Waiting approvals of this process by their tokens; where they take too much memory, the oldest are forgotten."""

    kept: dict[str, KeptApproval] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    most_chars: int = MOST_CHARS

    async def keep(self, entry: KeptApproval, now: float) -> None:
        known = [each for each in self.kept.values() if each.expires >= now - TOLD_S] + [entry]
        size = sum(len(each.about) for each in known)
        while size > self.most_chars:
            size -= len(known.pop(0).about)
        self.kept = {each.token: each for each in known}
        self.used &= {each.turn for each in known}

    async def find(self, token: str) -> KeptApproval | None:
        return self.kept.get(token)

    async def of_turn(self, turn: str) -> KeptApproval | None:
        return next((each for each in self.kept.values() if each.turn == turn), None)

    async def use(self, turn: str) -> bool:
        is_first = turn not in self.used
        self.used.add(turn)
        return is_first

    async def give_back(self, turn: str) -> None:
        self.used.discard(turn)


@dataclass(frozen=True, slots=True)
class WaitingCalls:
    """The calls of one answer that wait, with the token that allows them."""

    token: str
    expires: int
    reasons: tuple[tuple[ToolCall, str], ...]

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        return tuple(call for call, _ in self.reasons)

    def json(self, choice: int) -> dict[str, Any]:
        """The entry of `demeanor.approvals`."""
        calls = [
            {"id": c.id, "name": c.name, "arguments": c.arguments, "reason": why} for c, why in self.reasons
        ]
        return {"choice": choice, "token": self.token, "expires_at": self.expires, "calls": calls}


@dataclass(frozen=True)
class Approver:
    """Gives and checks the tokens of a server; `now` in seconds since 1970."""

    timeout_s: float = TIMEOUT_S
    now: Callable[[], float] = time.time
    store: ApprovalStore = field(default_factory=LocalApprovals)

    def of(self, store: ApprovalStore | None) -> Approver:
        """The same with the store of an assistant, if it has one."""
        return self if store is None else replace(self, store=store)

    async def waiting(
        self, turn: Turn, events: Sequence[Event], shown: Sequence[ToolCall], text: str
    ) -> WaitingCalls | None:
        """The calls that wait among those that a client is shown with `text`, and their new token; None if none waits."""
        if not (found := _waiting(events, shown)):
            return None
        before = merged(turn.messages)
        answer = Message("assistant", text, tool_calls=tuple(shown))
        kept, tail = _rounds(replace(turn, messages=before), events, answer)
        about = {
            **self._bound(turn),
            "calls": [call.id for call, _ in found],
            "conversation": digest((*before, answer)),
            "kept": kept,
            "before": digest(before[:kept]),
            "tail": [_json(message) for message in tail],
        }
        expires, token = int(self.now() + self.timeout_s), secrets.token_urlsafe(32)
        entry = KeptApproval(turn.id, turn.user, token, expires, json.dumps(about))
        await self.store.keep(entry, self.now())
        return WaitingCalls(token, expires, tuple(found))

    async def shown_again(
        self, turn: Turn, events: Sequence[Event], shown: Sequence[ToolCall], text: str
    ) -> WaitingCalls | None:
        """The same of an answer from the record: the token that it was given then, or one that holds no more."""
        if not (found := _waiting(events, shown)):
            return None
        entry = await self.store.of_turn(turn.id)
        token, expires = (entry.token, int(entry.expires)) if entry else (secrets.token_urlsafe(32), 0)
        return WaitingCalls(token, expires, tuple(found))

    async def decided(self, turn: Turn, given: ApprovalField) -> tuple[Turn, str]:
        """The turn with a person's decisions, and the turn that waited for them, which is used from now on.

        Raises RequestError (400) with `approval.token` or `approval.decisions` as its param.
        """
        waited, about = await self._found(given.token)
        _same_calls(about["calls"], given.decisions)
        if any(about[name] != value for name, value in self._bound(turn).items()):
            raise _invalid("the token is of another user, key, variant or version of the stack")
        messages = merged(turn.messages)
        last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
        if (
            digest(messages[: last + 1]) != about["conversation"]
            or digest(messages[: about["kept"]]) != about["before"]
        ):
            raise _invalid("the conversation, or a call in it, is not the one that the token was given for")
        if any(message.role != "tool" for message in messages[last + 1 :]):
            raise _invalid(
                "something follows the calls that wait; only results of the client's own calls may"
            )
        answered = {message.tool_call_id for message in messages[last + 1 :]}
        if answered & set(about["calls"]):
            raise _invalid("a call that waits has a result already")
        if not await self.store.use(waited):
            raise RequestError(
                "approval.token: it was used before; a token holds for one request.",
                param="approval.token",
                code="approval_used",
            )
        decisions = tuple(Approval(d.call_id, d.approve, d.reason or "") for d in given.decisions)
        tail = tuple(_message(message) for message in about["tail"])
        approvals = Approvals(decisions, about["kept"], tail)
        return replace(turn, messages=messages, approvals=approvals), waited

    def _bound(self, turn: Turn) -> dict[str, str]:
        """Whom and what a token is for."""
        request = CURRENT_REQUEST.get(None)
        key = request.key.digest if request is not None and request.key is not None else ""
        return {"user": turn.user, "key": key, "variant": turn.variant, "stack_key": turn.stack_key}

    async def _found(self, token: str) -> tuple[str, dict[str, Any]]:
        """The turn of a token and what it stands for. Raises RequestError if it is not known or has expired."""
        entry = await self.store.find(token)
        if entry is None:
            raise _invalid(
                "it is not known here: tokens are forgotten an hour after they expire, and without a record layer they end with the "
                "process that gave them. Ask again for the answer"
            )
        if self.now() > entry.expires:
            raise RequestError(
                "approval.token: it has expired; ask again for the answer.",
                param="approval.token",
                code="approval_expired",
            )
        return entry.turn, json.loads(entry.about)


def _waiting(events: Sequence[Event], shown: Sequence[ToolCall]) -> list[tuple[ToolCall, str]]:
    """The calls that wait among those that are shown, with the reasons."""
    reasons = {e.call_id: e.detail for e in events if isinstance(e, ToolDecision) and e.verdict == "waiting"}
    return [(call, reasons[call.id]) for call in shown if call.id in reasons]


REQUEST = "mcpr_"


def request_id(call_id: str, token: str) -> str:
    """The id of an item that asks for an approval: a call and the token of its answer."""
    return f"{REQUEST}{call_id.encode().hex()}_{token}"


def request_parts(id_: str) -> tuple[str, str]:
    """The call and the token of such an id. Raises RequestError (400) for any other."""
    call, _, token = id_.removeprefix(REQUEST).partition("_")
    try:
        if not id_.startswith(REQUEST) or not token:
            raise ValueError
        return bytes.fromhex(call).decode(), token
    except ValueError:
        raise RequestError(
            f"input: '{id_[:40]}' is not the id of an mcp_approval_request.",
            param="input",
            code="invalid_approval",
        ) from None


def _same_calls(calls: Sequence[str], decisions: Sequence[CallDecision]) -> None:
    decided = [decision.call_id for decision in decisions]
    wrong = [f"'{call}' is not decided" for call in calls if call not in decided]
    wrong += [f"'{call}' does not wait" for call in decided if call not in calls]
    wrong += [f"'{call}' is decided twice" for call in sorted(set(decided)) if decided.count(call) > 1]
    if wrong:
        raise RequestError(
            f"approval.decisions: {'; '.join(wrong[:5])}. Wanted one decision for each of: {', '.join(calls)}.",
            param="approval.decisions",
            code="invalid_value",
        )


def _invalid(why: str) -> RequestError:
    return RequestError(f"approval.token: {why}.", param="approval.token", code="invalid_approval")


def given_back(inner: Respond, store: ApprovalStore, approval: str) -> Respond:
    """The same answer; if it fails before its first event (a limit, a server behind ours), the approval may be used again."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        began = False
        events = inner(turn)
        try:
            async with aclosing(events) if isinstance(events, AsyncGenerator) else _open(events):
                async for event in events:
                    began = True
                    yield event
        except DemeanorError:
            if not began:
                await store.give_back(approval)
            raise

    return respond


class _open:
    """A context manager around what needs no closing."""

    def __init__(self, events: Any) -> None:
        self.events = events

    async def __aenter__(self) -> Any:
        return self.events

    async def __aexit__(self, *_: object) -> None:
        return None


# ---- conversations ----


def merged(messages: Messages) -> Messages:
    """A conversation in which a text and the calls behind it are one message, as chat sends them and items do not."""
    found = list[Message]()
    for message in messages:
        last = found[-1] if found else None
        calls_only = message.role == "assistant" and not message.content and message.tool_calls
        if calls_only and last is not None and last.role == "assistant" and not last.tool_calls:
            found[-1] = replace(last, tool_calls=message.tool_calls)
        else:
            found.append(message)
    return tuple(found)


def digest(messages: Sequence[Message]) -> str:
    """SHA-256 of a conversation as a client sends it."""
    text = json.dumps([_json(message) for message in messages], separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _json(message: Message) -> list[Any]:
    calls = [[call.id, call.name, call.arguments] for call in message.tool_calls]
    return [message.role, message.content, calls, message.tool_call_id, message.name]


def _message(value: Sequence[Any]) -> Message:
    role, content, calls, call_id, name = value
    trust = Trust.NONE if role == "tool" else None
    made = tuple(ToolCall(*call) for call in calls)
    return Message(role, content, tool_calls=made, tool_call_id=call_id, name=name, trust=trust)


def _rounds(turn: Turn, events: Sequence[Event], answer: Message) -> tuple[int, Messages]:
    """How many messages of a turn stand as they are, and those that its answer stands for: calls, results and texts of all rounds.

    No message stands for anything else where there was one round, without a result.
    """
    kept, tail, decided = len(turn.messages), list[Message](), set[str]()
    if turn.approvals is not None:
        decided = {decision.call_id for decision in turn.approvals.decisions}
        if turn.approvals.tail:
            kept = turn.approvals.kept
            tail = list(turn.approvals.conversation(turn.messages)[kept:])
    text, calls, results = "", list[ToolCall](), list[Message]()

    def end_round() -> None:
        nonlocal text
        if text or calls:
            tail.append(Message("assistant", text, tool_calls=tuple(calls)))
        tail.extend(results)
        text = ""
        calls.clear()
        results.clear()

    for event in events:
        if isinstance(event, Text) and event.by != "tools":
            if results:
                end_round()
            text += event.text
        elif isinstance(event, ToolCalled) and event.call.id not in decided:
            if results:
                end_round()
            calls.append(event.call)
        elif isinstance(event, ToolResult):
            read = Message("tool", event.content, tool_call_id=event.call_id, name=event.name)
            (tail if event.call_id in decided else results).append(read)
    shown = {call.id for call in answer.tool_calls} | {result.tool_call_id for result in results}
    calls[:] = [call for call in calls if call.id in shown]
    last = next((i for i in reversed(range(len(tail))) if tail[i].tool_calls), None)
    if not calls and last is not None:  # a text that a policy held back came after the calls of its round
        tail[last] = replace(tail[last], content=tail[last].content + text)
        text = ""
    end_round()
    return (len(turn.messages), ()) if tail == [answer] else (kept, tuple(tail))
