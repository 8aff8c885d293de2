"""Foreign chat completions as events: one reader of server-sent events, and one of the many shapes of answers.

In: bytes of a server, and chunks that are only nearly OpenAI's. Out: our events, or UpstreamError. No JSON
value in any place raises anything else. Knows no connection.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from demeanor.core.errors import UpstreamError, unknown
from demeanor.core.types import (
    Done,
    Event,
    FinishReason,
    Refusal,
    Text,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    Turn,
    Usage,
)

_PRIVATE = re.compile(r"https?://[^\s\"'<>)]+|\b(?:sk|key)-[\w*-]{8,}|(?i:bearer) [^\s\"']+")
EVENT_BYTES = 1 << 20  # longest line and longest event of a stream
MOST_CALLS = 512  # of one answer
LEAST_LOGPROB = -9999.0  # what OpenAI's API writes for minus infinity, which JSON does not have
_ID = re.compile(r"[\x21-\x7e]{1,128}")  # ids that a client can send back
_FINISH: Mapping[str, FinishReason | None] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "eos_token", "end", "complete"), "stop"),
    **dict.fromkeys(("completed", "finished", "done", "normal", "stop_str"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "max_length", "model_length"), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "context_length_exceeded", "incomplete"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call", "function_calls"), "tool_calls"),
    **dict.fromkeys(("content_filter", "content_filtered", "safety", "recitation"), "content_filter"),
    **dict.fromkeys(("refusal", "blocklist", "prohibited_content", "spii", "sensitive"), "content_filter"),
    **dict.fromkeys(("guardrail_intervened", "language"), "content_filter"),
    **dict.fromkeys(("error", "network_error", "abort", "aborted", "cancelled", "canceled"), None),
    **dict.fromkeys(("insufficient_system_resource", "timeout", "malformed_function_call"), None),
}
"""Reasons of other servers in lower case; None: the answer is not whole."""


class ServerSent(NamedTuple):
    """The data of one event, lines joined by line feeds, and its name."""

    data: bytes
    name: str = ""


async def server_sent(chunks: AsyncIterator[bytes], url: str) -> AsyncGenerator[ServerSent, None]:
    """Yield each server-sent event that has data; an unfinished last event is dropped.

    Raises UpstreamError if an event is too long. Source:
    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    event, mark, after_return = bytearray(), codecs.BOM_UTF8, False
    async for chunk in chunks:
        if not chunk:
            continue
        if after_return:
            chunk = chunk.removeprefix(b"\n")
        after_return = chunk.endswith(b"\r")
        for part in chunk.splitlines(keepends=True):  # of bytes: ends are \n, \r and \r\n only
            blank = part in (b"\n", b"\r", b"\r\n") and (not event or event.endswith((b"\n", b"\r")))
            event += part
            if len(event) > EVENT_BYTES:
                raise UpstreamError(f"{url}: sent an event of more than {EVENT_BYTES} bytes")
            if blank:
                fields = [line.partition(b":") for line in bytes(event).removeprefix(mark).splitlines()]
                named = [(name, value.removeprefix(b" ")) for name, _, value in fields]
                data = [value for name, value in named if name == b"data"]
                if data:
                    names = [value for name, value in named if name == b"event"]
                    yield ServerSent(b"\n".join(data), names[-1].decode(errors="replace") if names else "")
                event, mark = bytearray(), b""


def json_object(text: bytes, url: str) -> dict[str, Any]:
    """Parse one JSON object as UTF-8, wrong bytes replaced; raises UpstreamError."""
    try:
        value = json.loads(text.decode("utf-8", errors="replace").removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise UpstreamError(f"{url}: sent no JSON: {text[:80]!r}") from error
    if not isinstance(value, dict):
        raise UpstreamError(f"{url}: sent {text[:80]!r} where a JSON object was expected")
    return value


def error_of(body: Mapping[str, Any], url: str, *, named: bool = False) -> UpstreamError | None:
    """Return the error that a body tells, in any of the forms that servers use; None if it tells none.

    `named`: the body is an event called `error`.
    """
    error = body.get("error")
    if not error and (body.get("object") == "error" or body.get("type") == "error" or named):
        error = body
    if not error and not body.keys() & {"choices", "usage", "object"}:
        error = body.get("detail") or (body if isinstance(body.get("message"), str) else None)
    if not error:
        return None
    return told_error(f"{url}: the answer is an error", error)


_RATE, _REQUEST = (
    ("rate_limit_exceeded", "rate_limit_error"),
    ("context_length_exceeded", "invalid_request_error"),
)
_WORDS = {**dict.fromkeys(_RATE, 429), **dict.fromkeys(_REQUEST, 400)}
_WORDS |= {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
}
_WORDS |= {"model_not_found": 404, "overloaded_error": 503, "timeout_error": 504}
PUBLIC_CHARS = 500  # of a server's message, shown to a client


def told_error(
    where: str, error: object, status: int = 200, retry_after_s: float | None = None
) -> UpstreamError:
    """Return the error for what a server told, and whose fault it is.

    `status` is the server's; 200 if the error stands in an answer, whose code then decides.
    """
    about = error if isinstance(error, dict) else {}
    told = about.get("message", about.get("detail", error))
    message = clean(" ".join((told if isinstance(told, str) else json.dumps(told)).split()))
    message = "".join(c if c.isprintable() else " " for c in message)[:PUBLIC_CHARS]
    words = [about.get(name) for name in ("code", "status", "status_code", "type")]
    if status == 200:
        numbers = (whole_number(word) for word in words)
        named = (_WORDS[word] for word in words if isinstance(word, str) and word in _WORDS)
        status = next((n for n in numbers if n is not None and 400 <= n < 600), next(named, 500))
    code = next(
        (w for w in words[:1] if isinstance(w, str) and re.fullmatch(r"[A-Za-z][\w.-]{0,63}", w)), None
    )
    param = about.get("param")
    param = clean(param) if isinstance(param, str) and len(param) <= 200 else None
    where, message = f"{where}: {message}", _PRIVATE.sub("[...]", message)
    match status:
        case 400 | 413 | 422:
            code = code or "upstream_invalid_request"
            return UpstreamError(where, status=400, public=message, code=code, param=param)
        case 401 | 403:
            return UpstreamError(where, code="upstream_authentication", public=_NO_KEY)
        case 404:
            public = f"The server behind this model has no such model or address: {message}"
            return UpstreamError(where, status=404, public=public, code="upstream_model_not_found")
        case 429:
            again = code != "insufficient_quota"
            code = code or "rate_limit_exceeded"
            return UpstreamError(
                where, status=429, public=message, code=code, retry_after_s=retry_after_s, again=again
            )
        case 503 | 529:
            return unavailable(where, retry_after_s)
        case 408 | 504:
            return UpstreamError(where, status=504, code="upstream_timeout", again=True)
        case _:
            return UpstreamError(where, retry_after_s=retry_after_s, again=status >= 500)


def unavailable(where: str, retry_after_s: float | None = None) -> UpstreamError:
    """Return the error for a server that is away or overloaded."""
    return UpstreamError(
        where,
        status=503,
        public="The server behind this model is not available now.",
        code="upstream_unavailable",
        retry_after_s=retry_after_s,
        again=True,
    )


_NO_KEY = (
    "The server behind this model refuses the credentials of this one; its operator has to set them "
    "(weights.base.key_env)."
)


def whole_number(value: object) -> int | None:
    """Return a count as an int (numbers as text are read too); None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value, re.ASCII):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def clean(text: str) -> str:
    """Join the halves of surrogate pairs and replace lone ones, which UTF-8 cannot hold."""
    return (
        text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    )


_MARKS = re.compile(r'["{}\[\]\\]')


@dataclass
class PartialCall:
    """A tool call as far as it has come; adding to it takes time linear in what is added."""

    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    size: int = 0
    _depth: int = 0
    _in_text: bool = False
    _escaped: int = -1  # the place of an escaped character

    @property
    def arguments(self) -> str:
        return "".join(self.parts)

    @property
    def whole(self) -> bool:
        """Whether the arguments are an object or a list that has ended."""
        return bool(self.parts) and self._depth == 0 and not self._in_text and self.parts[-1].strip() != ""

    def add(self, text: str) -> None:
        for mark in _MARKS.finditer(text):
            if self.size + mark.start() == self._escaped:
                continue
            if mark[0] == "\\":
                self._escaped = self.size + mark.end()
            elif mark[0] == '"':
                self._in_text = not self._in_text
            elif not self._in_text:
                self._depth += 1 if mark[0] in "{[" else -1
        self.size += len(text)
        if text:
            self.parts.append(text)

    def same(self, id: str, name: str, arguments: str) -> bool:
        """Whether this is the call once more."""
        told = (self.id, self.name, self.size) == (id, name, len(arguments))
        return bool(told and id and self.whole and self.arguments == arguments)


class ChatReader:
    """Reads the chunks of a streamed chat completion, or a whole one, into events.

    Only the first choice is read. Tool calls, usage and the end come at the end, from `finish`.
    """

    def __init__(self, url: str, turn: Turn) -> None:
        self._url, self._turn = url, turn
        self._choice: object = None
        self._calls: list[PartialCall] = []
        self._by_index: dict[int, PartialCall] = {}
        self._legacy = PartialCall()
        self._prompt: int | None = None
        self._cached = 0  # prompt tokens that the server did not read again
        self._completion: int | None = None
        self._half, self._written = "", 0
        self._refusal: list[str] = []
        self.finish_reason: str | None = None
        self.progress = 0
        """Chunks that held a part of the answer; pings and empty objects do not count."""
        self.over = False
        """Whether the finish reason and the usage have come, so that nothing more can."""

    def feed(self, chunk: Mapping[str, Any], *, named_error: bool = False) -> list[Event]:
        """Read one chunk and return its text. Raises UpstreamError if it tells an error or has a wrong shape."""
        if error := error_of(chunk, self._url, named=named_error):
            raise error
        told = self._add_usage(chunk.get("usage"))
        events: list[Event] = []
        for place, choice in enumerate(self._list(chunk.get("choices"), "choices")):
            choice = self._dict(choice, f"choices[{place}]")
            given = whole_number(choice.get("index"))
            index = place if given is None else given
            if self._choice is None:
                self._choice = index
            if index == self._choice:
                self.progress += 1
                events += self._read(choice, f"choices[{place}]")
        self.over |= told and self.finish_reason is not None
        return events

    def _read(self, choice: Mapping[str, Any], where: str) -> list[Event]:
        self._add_usage(choice.get("usage"))
        said = choice.get("delta")
        if said is None and not (self._written or self._calls):  # a whole message, or an old completion
            said = choice.get("message", {"content": choice.get("text")})
        delta = self._dict(said, f"{where}.delta")
        calls = delta.get("tool_calls")
        for place, part in enumerate(self._list([calls] if isinstance(calls, dict) else calls, "tool_calls")):
            self._add_call(self._dict(part, f"tool_calls[{place}]"), place, len(calls or ()))
        if legacy := self._dict(delta.get("function_call"), f"{where}.delta.function_call"):
            self._extend(self._legacy, "", *self._function(legacy))
        self._refusal += filter(None, [self._text(delta.get("refusal"), f"{where}.delta.refusal")])
        content = self._text(delta.get("content"), f"{where}.delta.content")
        if finish := choice.get("finish_reason"):
            self.finish_reason = str(finish)
        text, asked = self._whole_characters(content), self._turn.decoding.top_logprobs is not None
        logprobs = self._logprobs(choice.get("logprobs"), f"{where}.logprobs") if asked else ()
        if asked and content.strip() and not self._written and choice.get("logprobs") is None:
            raise UpstreamError(
                f"{self._url}: logprobs: the server sends no log-probabilities",
                status=400,
                public="logprobs: the model behind this stack sends no log-probabilities; leave the field out",
                param="logprobs",
                code="unsupported_value",
            )
        self._written += len(content.encode("utf-8", "surrogatepass"))
        return [Text(text, logprobs=logprobs)] if text or logprobs else []

    def finish(self, *, prompt_tokens: int) -> list[Event]:
        """Return the rest of the text, the tool calls, the refusal if there is one, the usage and the end.

        `prompt_tokens` is an estimate for a server that does not tell the usage.
        """
        rest: list[Event] = [Text("\ufffd")] if self._half else []
        calls = self._tool_calls()
        finish = self._finish(bool(calls))
        refused: list[Event] = []
        if self._refusal:
            reason = "the server says that this is a refusal"
            refused.append(Refusal("remote", "", reason, clean("".join(self._refusal)), "output"))
        elif not calls and finish == "stop" and self._turn.tool_choice not in ("auto", "none"):
            raise self._wrong("the answer does not call a tool, which tool_choice demands")
        written = self._written + sum(map(len, self._refusal)) + sum(len(c.name + c.arguments) for c in calls)
        completion = None if self._completion == 0 and written else self._completion
        usage = Usage(
            prompt_tokens if self._prompt is None else self._prompt,
            -(-written // 3) if completion is None else completion,
            estimated=self._prompt is None or completion is None,
            cached_tokens=self._cached,
        )
        return [*rest, *(ToolCalled(call) for call in calls), *refused, usage, Done(finish)]

    def _finish(self, called: bool) -> FinishReason:
        told = "stop" if self.finish_reason is None else self.finish_reason
        name = told.rpartition(".")[2].lower().replace("-", "_")
        if name not in _FINISH:
            raise self._wrong(unknown(ascii(told[:80])[1:-1], _FINISH, noun="finish_reason"))
        finish = _FINISH[name]
        if finish is None:
            raise self._wrong(f"the answer broke off (finish_reason '{name}')")
        if finish in ("stop", "tool_calls"):
            return "tool_calls" if called else "stop"
        return finish

    def _tool_calls(self) -> list[ToolCall]:
        """The calls with ids that are unique in the conversation: the server's, or our own where it has none."""
        taken = {call.id for message in self._turn.messages for call in message.tool_calls}
        found: list[ToolCall] = []
        legacy = [self._legacy] if self._legacy.name and not self._calls else []
        for number, call in enumerate([*self._calls, *legacy]):
            if not call.name:
                raise self._wrong(f"tool_calls[{number}] has no name")
            id, own = call.id, len(taken)
            while id in taken or not _ID.fullmatch(id):
                id, own = f"call_{own}", own + 1
            taken.add(id)
            cut = self.finish_reason is not None and _FINISH.get(self.finish_reason.lower()) == "length"
            arguments = clean(call.arguments)
            found.append(ToolCall(id, clean(call.name), arguments if arguments.strip() or cut else "{}"))
        return found

    def _add_call(self, part: Mapping[str, Any], place: int, count: int) -> None:
        """Add a fragment to its call: by `index` where it has one, else by id, place, or the last call."""
        function = part.get("function")
        name, arguments = self._function(part if function is None else self._dict(function, "function"))
        id = part.get("id")
        id = clean(id) if isinstance(id, str) else "" if id is None else json.dumps(id)
        index = whole_number(part.get("index"))
        if index is not None:
            known = self._by_index.get(index)
        elif id:
            known = next((call for call in reversed(self._calls) if call.id == id), None)
        elif count > 1:
            known = self._calls[place] if place < len(self._calls) else None
        else:
            known = self._calls[-1] if self._calls else None
        if known is None or _begins_another(known, id, name, arguments):
            self._calls.append(known := PartialCall())
            if len(self._calls) > MOST_CALLS:
                raise self._wrong(f"the answer makes more than {MOST_CALLS} tool calls")
        if index is not None:
            self._by_index[index] = known
        self._extend(known, id, name, arguments)

    def _extend(self, call: PartialCall, id: str, name: str, arguments: str) -> None:
        if call.same(id, name, arguments):
            return
        call.id = call.id or id
        if name != call.name:  # a name in parts, or once more with each part
            call.name = name if name.startswith(call.name) else call.name + name
        call.add(arguments)

    def _function(self, function: Mapping[str, Any]) -> tuple[str, str]:
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(name, str | None):
            raise self._shape("function.name", "text", name)
        if arguments is None:
            return name or "", ""
        return name or "", arguments if isinstance(arguments, str) else json.dumps(arguments)

    def _add_usage(self, usage: object) -> bool:
        """Remember the counts and return whether all are told; a prompt of 0 tokens is no count."""
        if not isinstance(usage, dict):
            return False
        prompt, completion, total = (
            whole_number(usage.get(name)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        if total and prompt is not None and completion is None and total >= prompt:
            completion = total - prompt
        if total and completion is not None and prompt is None and total > completion:
            prompt = total - completion
        self._prompt = prompt or self._prompt
        details = usage.get("prompt_tokens_details")
        cached = whole_number(details.get("cached_tokens")) if isinstance(details, dict) else None
        self._cached = cached or self._cached
        self._completion = self._completion if completion is None else completion
        return bool(prompt and completion)

    def _logprobs(self, value: object, where: str) -> tuple[TokenLogprob, ...]:
        """The tokens whose log-probability is told."""
        found = []
        content = self._dict(value, where).get("content")
        for place, token in enumerate(self._list(content, f"{where}.content")):
            token = self._dict(token, f"{where}.content[{place}]")
            text, logprob = token.get("token"), _logprob(token.get("logprob"))
            if not isinstance(text, str):
                raise self._shape(f"{where}.content[{place}].token", "text", text)
            tops = [
                self._dict(t, "top_logprobs") for t in self._list(token.get("top_logprobs"), "top_logprobs")
            ]
            alternatives = ((t.get("token"), _logprob(t.get("logprob"))) for t in tops)
            top = tuple((clean(t), p) for t, p in alternatives if isinstance(t, str) and p is not None)
            if logprob is not None:
                found.append(TokenLogprob(clean(text), logprob, top, _bytes_of(token.get("bytes"), text)))
        return tuple(found)

    def _whole_characters(self, content: str) -> str:
        """Return text without a half character at its end, which waits for its other half."""
        text = self._half + content
        self._half = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return clean(text[: len(text) - len(self._half)])

    def _text(self, value: object, where: str) -> str:
        """Return a content as text: a text, or parts of text (parts of reasoning are left out)."""
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, dict):
            kind = value.get("type", "text")
            if kind in ("thinking", "reasoning", "redacted_thinking"):
                return ""
            if kind in ("text", "output_text", "refusal"):
                return self._text(value.get("text", value.get("refusal")), f"{where}.text")
            raise self._shape(f"{where}.type", "text", kind)
        if isinstance(value, list) and all(isinstance(part, str | dict) for part in value):
            return "".join(self._text(part, where) for part in value)
        raise self._shape(where, "text or a list of parts", value)

    def _dict(self, value: object, where: str) -> Mapping[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._shape(where, "an object", value)
        return value

    def _list(self, value: object, where: str) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._shape(where, "a list", value)
        return value

    def _shape(self, where: str, wanted: str, got: object) -> UpstreamError:
        return self._wrong(f"{where}: got {ascii(got)[:80]}, wanted {wanted}")

    def _wrong(self, what: str) -> UpstreamError:
        return UpstreamError(f"{self._url}: {what}")


def _begins_another(known: PartialCall, id: str, name: str, arguments: str) -> bool:
    """Whether a fragment that would extend `known` is a call of its own: servers repeat indices, names and ids."""
    if not name or not known.name:
        return False
    if known.same(id, name, arguments):
        return False
    other_id = bool(id and known.id and id != known.id)
    if name == known.name:
        return known.whole and (other_id or bool(arguments.strip()))
    return known.size > 0 or other_id  # else a name in parts


def _bytes_of(told: object, text: str) -> tuple[int, ...] | None:
    """Return the bytes of a token as told; None if they are those of its text, or no bytes."""
    if not isinstance(told, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in told):
        return None
    return None if bytes(told) == clean(text).encode() else tuple(told)


def _logprob(value: object) -> float | None:
    """Return a log-probability in nats; None where none is told, LEAST_LOGPROB for minus infinity."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return float(max(LEAST_LOGPROB, min(0.0, value)))
