"""Approvals of tool calls: what a client gets with an answer that waits for a person, and the check of what it sends back.

In: a turn with its events; later a token with decisions. Out: a signed token; later the turn with decisions that the tools layer may
trust. A token holds once, until it expires, for one user and key, variant, stack and conversation, and exactly the calls that were
shown. It also carries the rounds before the calls, as the client may see them, so that no server has to remember them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import Field

from demeanor.core.errors import DemeanorError, RequestError, UsageError
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
from demeanor.server.assistant import UsedApprovals
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import Body

SECRET = "DEMEANOR_APPROVAL_SECRET"
LEAST_SECRET, MAX_TOKEN, MAX_DECISIONS = 32, 400_000, 128
TIMEOUT_S = 900.0
NONCE = 16


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
    """Used approvals of this process, until they expire."""

    used: dict[str, float] = field(default_factory=dict)

    async def use(self, approval: str, expires: float, now: float) -> bool:
        self.used = {id_: until for id_, until in self.used.items() if until >= now}
        if approval in self.used:
            return False
        self.used[approval] = expires
        return True

    async def give_back(self, approval: str) -> None:
        self.used.pop(approval, None)


def secret_of(environment: str | None) -> bytes:
    """The secret that tokens are signed with: the variable's, or a random one of this process. Raises UsageError if it is short."""
    if environment is None:
        return secrets.token_bytes(32)
    if len(environment) < LEAST_SECRET:
        raise UsageError(
            f"{SECRET}: {len(environment)} characters are easy to guess; wanted at least {LEAST_SECRET}, the same for all processes"
        )
    return environment.encode()


@dataclass(frozen=True, slots=True)
class WaitingCalls:
    """The calls of one answer that wait, with the token that allows them."""

    token: str
    expires: int
    calls: tuple[ToolCall, ...]
    reasons: tuple[str, ...]

    def json(self, choice: int) -> dict[str, Any]:
        """The entry of `demeanor.approvals`."""
        calls = [
            {"id": c.id, "name": c.name, "arguments": c.arguments, "reason": why}
            for c, why in zip(self.calls, self.reasons)
        ]
        return {"choice": choice, "token": self.token, "expires_at": self.expires, "calls": calls}


@dataclass(frozen=True)
class Approver:
    """Signs and checks the tokens of a server; `now` in seconds since 1970."""

    secret: bytes = field(default_factory=lambda: secret_of(os.environ.get(SECRET)), repr=False)
    timeout_s: float = TIMEOUT_S
    now: Callable[[], float] = time.time
    used: UsedApprovals = field(default_factory=LocalApprovals)

    def waiting(
        self, turn: Turn, events: Sequence[Event], shown: Sequence[ToolCall], text: str
    ) -> WaitingCalls | None:
        """The calls that wait among those that a client is shown with `text`, and their token; None if none waits."""
        reasons = {
            e.call_id: e.detail for e in events if isinstance(e, ToolDecision) and e.verdict == "waiting"
        }
        calls = tuple(call for call in shown if call.id in reasons)
        if not calls:
            return None
        before = merged(turn.messages)
        answer = Message("assistant", text, tool_calls=tuple(shown))
        kept, tail = _rounds(replace(turn, messages=before), events, answer)
        expires = int(self.now() + self.timeout_s)
        about = {
            **self._bound(turn),
            "id": turn.id,
            "expires": expires,
            "calls": [call.id for call in calls],
            "conversation": digest((*before, answer)),
            "kept": kept,
            "before": digest(before[:kept]),
            "tail": [_json(message) for message in tail],
        }
        return WaitingCalls(self.sealed(about), expires, calls, tuple(reasons[call.id] for call in calls))

    async def decided(
        self, turn: Turn, given: ApprovalField, used: UsedApprovals | None = None
    ) -> tuple[Turn, str]:
        """The turn with a person's decisions, and the id of the approval, which is used from now on.

        Raises RequestError (400) with `approval.token` or `approval.decisions` as its param.
        """
        about = self._checked(given.token)
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
        if not await (used or self.used).use(about["id"], about["expires"], self.now()):
            raise RequestError(
                "approval.token: it was used before; a token holds for one request.",
                param="approval.token",
                code="approval_used",
            )
        decisions = tuple(Approval(d.call_id, d.approve, d.reason or "") for d in given.decisions)
        tail = tuple(_message(message) for message in about["tail"])
        return replace(turn, messages=messages, approvals=Approvals(decisions, about["kept"], tail)), about[
            "id"
        ]

    def _bound(self, turn: Turn) -> dict[str, str]:
        """Whom and what a token is for."""
        request = CURRENT_REQUEST.get(None)
        key = request.key.digest if request is not None and request.key is not None else ""
        return {"user": turn.user, "key": key, "variant": turn.variant, "stack_key": turn.stack_key}

    def sealed(self, about: dict[str, Any]) -> str:
        """A token: encrypted, so that it shows a client nothing that the operator hides, then signed."""
        nonce = secrets.token_bytes(NONCE)
        body = _encoded(nonce + self._veiled(nonce, zlib.compress(json.dumps(about).encode(), 6)))
        return f"v1.{body}.{_encoded(self._mac(body))}"

    def _veiled(self, nonce: bytes, data: bytes) -> bytes:
        """Data XORed with SHAKE-256 of a key and a nonce that is used once; done twice, it is the data again."""
        key = hmac.digest(self.secret, b"demeanor approval v1: encryption", "sha256")
        stream = hashlib.shake_256(key + nonce).digest(len(data))
        return (int.from_bytes(data) ^ int.from_bytes(stream)).to_bytes(len(data))

    def _mac(self, body: str) -> bytes:
        key = hmac.digest(self.secret, b"demeanor approval v1: signature", "sha256")
        return hmac.digest(key, body.encode(), "sha256")

    def opened(self, body: str) -> dict[str, Any]:
        """What the body of a token says; its signature was checked."""
        data = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        found: dict[str, Any] = json.loads(zlib.decompress(self._veiled(data[:NONCE], data[NONCE:])))
        return found

    def _checked(self, token: str) -> dict[str, Any]:
        """What a token says. Raises RequestError if it is not ours or has expired."""
        version, _, rest = token.partition(".")
        body, _, mac = rest.partition(".")
        if version != "v1" or not token.isascii() or not hmac.compare_digest(mac, _encoded(self._mac(body))):
            raise _invalid(
                "it was not signed here, or was altered; after a restart, and with several server processes that do not share "
                f"{SECRET}, an answer has to be asked for again"
            )
        about = self.opened(body)
        if self.now() > about["expires"]:
            raise RequestError(
                "approval.token: it has expired; ask again for the answer.",
                param="approval.token",
                code="approval_expired",
            )
        return about


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


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


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


def given_back(inner: Respond, used: UsedApprovals, approval: str) -> Respond:
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
                await used.give_back(approval)
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
