"""Bytes to a ChatRequest, and a ChatRequest to the Turns that answer it.

Every mistake of a body comes out as one RequestError that names the field by its path, such as `messages[0].content`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from demeanor.core.errors import RequestError
from demeanor.core.types import Decoding, Message, Messages, ToolCall, ToolSpec, Turn
from demeanor.server.assistant import ModelCard
from demeanor.server.bodies import Body
from demeanor.server.forms import choice_name, form
from demeanor.server.protocol import AssistantMessage, ChatRequest, RequestMessage, ToolMessage, plain
from demeanor.server.sampling import sampled

B = TypeVar("B", bound=Body)
MAX_LISTED = 5
CODES = {"missing": "missing_required_parameter"}


def parse(body: bytes) -> ChatRequest:
    """Check the body of a chat request. Raises RequestError as `read` does."""
    return read(body, ChatRequest)


def read(body: bytes, kind: type[B]) -> B:
    """Check a request body. Raises RequestError (400) that lists the mistakes; `param` is the path of the first."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError("The body should be a JSON object.", code="invalid_type")
    return checked(value, kind)


def checked(value: dict[str, Any], kind: type[B]) -> B:
    """A request's fields, checked. Raises RequestError as `read` does."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)) from None


def _refusal(mistakes: list[ErrorDetails]) -> RequestError:
    lines = [f"{_path(m)}: {_sentence(m)}" for m in mistakes[:MAX_LISTED]]
    if len(mistakes) > MAX_LISTED:
        lines.append(f"and {len(mistakes) - MAX_LISTED} more mistakes")
    first = mistakes[0]
    wrong_type = first["type"].endswith(("_type", "_parsing"))
    code = first.get("ctx", {}).get("code") or CODES.get(
        first["type"], "invalid_type" if wrong_type else "invalid_value"
    )
    return RequestError("; ".join(lines), param=_path(first), code=code)


def _path(mistake: ErrorDetails) -> str:
    """`messages[0].content`: tags of unions (in angle brackets) are ours and not part of the body."""
    parts = [p for p in mistake["loc"] if not (isinstance(p, str) and p.startswith("<"))]
    parts += [mistake["ctx"]["field"]] if "field" in mistake.get("ctx", {}) else []
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")


def _sentence(mistake: ErrorDetails) -> str:
    text = mistake["msg"][:1].lower() + mistake["msg"][1:]
    return text if mistake["type"] in ("api", "missing") else f"{text}, got {_shown(mistake['input'])}"


def _shown(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 60 else text[:57] + "..."


def turns(
    request: ChatRequest, card: ModelCard, defaults: Decoding, *, user: str | None, id: str
) -> list[Turn]:
    """One Turn per choice; the first keeps the request's seed, the others derive theirs from it.

    `user` is the owner of the API key; without keys the request's own `user` names who is asking.
    """
    metadata = dict(request.metadata or {})
    if request.user is not None:
        metadata["user"] = request.user
    return [
        Turn(
            messages=messages(request.messages),
            decoding=decoding(request, defaults, choice),
            tools=tools(request),
            tool_choice=choice_name(request.tool_choice),
            id=id if choice == 0 else f"{id}-{choice}",
            user=user or request.user or "anonymous",
            variant=card.id,
            stack_key=card.stack_key,
            metadata=metadata,
        )
        for choice in range(request.n or 1)
    ]


def decoding(request: ChatRequest, defaults: Decoding, choice: int) -> Decoding:
    """The request's decoding settings over the assistant's own."""
    return replace(
        sampled(request, defaults, choice),
        max_tokens=request.limit or defaults.max_tokens,
        form=form(request.response_format),
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def messages(given: list[RequestMessage]) -> Messages:
    """The request's messages as ours, each with the authority of its role."""
    return tuple(_message(m) for m in given)


def _message(given: RequestMessage) -> Message:
    calls: tuple[ToolCall, ...] = ()
    text = plain(given.content)
    if isinstance(given, AssistantMessage):
        calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in given.tool_calls or ())
        text = text or given.refusal or ""
    call_id = given.tool_call_id if isinstance(given, ToolMessage) else None
    return Message(given.role, text, tool_calls=calls, tool_call_id=call_id, name=given.name)


def tools(request: ChatRequest) -> tuple[ToolSpec, ...]:
    """The tools the request offers."""
    return tuple(
        ToolSpec(
            t.function.name,
            t.function.description or "",
            t.function.parameters or {"type": "object", "properties": {}},
            bool(t.function.strict),
        )
        for t in request.tools or ()
    )
