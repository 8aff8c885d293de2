"""/v1/responses: answers as items, plain or streamed, and kept ones to go on from, read again and deleted.

In: OpenAI's body. Out: the same turns, layers and guard path as chat. A kept response is its recorded turn (store/), so it needs the
stack's record layer; nothing is kept twice.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.types import Send

from demeanor.core.errors import ContextError, DecodingError, RequestError
from demeanor.core.types import Completion, Decoding, Event, Message, Respond, Turn, fold
from demeanor.server import problems
from demeanor.server.assistant import Assistant, TurnStore
from demeanor.server.flow import flow, gathered, while_connected
from demeanor.server.incoming import body
from demeanor.server.parse import read
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.responses_answer import (
    Deleted,
    InputItems,
    ResponseAnswer,
    Script,
    StreamEvent,
    ended,
    output,
    used,
)
from demeanor.server.responses_body import OURS, ResponseRequest, messages
from demeanor.server.responses_page import Asked, Page, paged
from demeanor.server.stream import EventStream
from demeanor.server.trace import trace
from demeanor.store.database import Stored

FIELDS = {"response_format": "text.format", "max_tokens": "max_output_tokens"}
"""Fields of chat that have another name here."""


def responses(
    assistant: Assistant,
    max_body_bytes: int,
    clock: Callable[[], float],
    now: Callable[[], float],
) -> APIRouter:
    """The routes; `clock` in monotonic seconds, `now` in seconds since 1970."""
    router = APIRouter(prefix="/v1/responses")

    @router.post("")
    async def create(request: Request) -> Response:
        started = clock()
        user = CURRENT_REQUEST.get().user
        asked = read(await body(request, max_body_bytes), ResponseRequest)
        card, respond, kept = (
            assistant.card(asked.model),
            renamed(assistant.respond(asked.model)),
            assistant.turn_store(),
        )
        request.state.stack_key = card.stack_key
        request_id: str = request.state.request_id
        stem = request_id.removeprefix("req_")
        turn = turn_of(
            asked,
            assistant.defaults(),
            _earlier(asked, kept, user),
            user=user,
            id=f"resp_{stem}",
            kept=kept is not None,
        )
        turn = replace(turn, variant=card.id, stack_key=card.stack_key)
        blank = described(turn, int(now()), parallel=asked.parallel)

        def whole(completion: Completion) -> ResponseAnswer:
            status, why = ended(completion)
            return blank.model_copy(
                update={
                    "status": status,
                    "incomplete_details": why,
                    "usage": used(completion),
                    "output": output(completion, stem, logprobs=asked.logprobs, parallel=asked.parallel),
                    "demeanor": trace(card, [completion.events], 1000 * (clock() - started)),
                }
            )

        if not asked.stream:
            (events,) = await while_connected(request.receive, gathered(respond, [turn]))
            answer = whole(fold(events))
            headers = {"cache-control": "no-store", "x-demeanor-ms": str((answer.demeanor or {})["ms"])}
            return Response(answer.encode(), media_type="application/json", headers=headers)
        script = Script(blank, stem, logprobs=asked.logprobs, parallel=asked.parallel)
        return NamedEvents(
            streamed(flow(respond, [turn]), script, whole),
            lambda error: script.failed(problems.refusal_of(error, request_id)).encode(),
        )

    @router.get("/{response_id}")
    async def again(request: Request, response_id: str) -> Response:
        paged(request, Asked)
        found = _found(assistant.turn_store(), response_id, CURRENT_REQUEST.get().user)
        completion, about = found.completion, _about(found.turn)
        status, why = ended(completion)
        answer = described(
            found.turn, int(found.started.timestamp()), parallel=bool(about.get("parallel", True))
        ).model_copy(
            update={
                "status": status,
                "incomplete_details": why,
                "usage": used(completion),
                "output": output(
                    completion,
                    response_id.removeprefix("resp_"),
                    logprobs=found.turn.decoding.top_logprobs is not None,
                    parallel=bool(about.get("parallel", True)),
                ),
            }
        )
        return Response(answer.encode(), media_type="application/json", headers={"cache-control": "no-store"})

    @router.delete("/{response_id}")
    async def forget(request: Request, response_id: str) -> Response:
        kept, user = assistant.turn_store(), CURRENT_REQUEST.get().user
        _found(kept, response_id, user)
        assert kept is not None
        await kept.forget(response_id)
        answer = Deleted(id=response_id, object="response", deleted=True)
        return Response(answer.encode(), media_type="application/json", headers={"cache-control": "no-store"})

    @router.get("/{response_id}/input_items")
    async def items(request: Request, response_id: str) -> Response:
        page = paged(request, Page)
        found = _found(assistant.turn_store(), response_id, CURRENT_REQUEST.get().user)
        own = found.turn.messages[int(_about(found.turn).get("before", 0)) :]
        data = [
            x
            for i, message in enumerate(own)
            for x in _items(message, f"{response_id.removeprefix('resp_')}_{i}")
        ]
        shown, more = page.of(data)
        answer = InputItems(
            object="list",
            data=shown,
            first_id=shown[0]["id"] if shown else None,
            last_id=shown[-1]["id"] if shown else None,
            has_more=more,
        )
        return Response(answer.encode(), media_type="application/json", headers={"cache-control": "no-store"})

    return router


async def streamed(
    steps: AsyncGenerator[tuple[int, Event | None], None],
    script: Script,
    whole: Callable[[Completion], ResponseAnswer],
) -> AsyncGenerator[StreamEvent, None]:
    """The events to send; nothing before the first visible one, so that an early error is still an HTTP status."""
    async with aclosing(steps):
        async for _, event in steps:
            for told in script.add(event) if event is not None else script.end(whole(script.completion())):
                yield told


def renamed(respond: Respond) -> Respond:
    """The same, with errors that name the fields of this address."""

    async def named(turn: Turn) -> AsyncIterator[Event]:
        events = respond(turn)
        try:
            async for event in events:
                yield event
        except ContextError as error:
            raise RequestError(str(error), param="input", code="context_length_exceeded") from None
        except DecodingError as error:
            raise DecodingError(str(error), FIELDS.get(error.param, error.param)) from None
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    return named


class NamedEvents(EventStream):
    """Server-sent events that have their type as a name, as this address's do."""

    async def frame(self, send: Send, data: bytes) -> None:
        name = b"" if data == b"[DONE]" else str(orjson.loads(data).get("type", "error")).encode()
        named = b"event: " + name + b"\n" if name else b""
        await send(
            {"type": "http.response.body", "body": named + b"data: " + data + b"\n\n", "more_body": True}
        )


def turn_of(
    asked: ResponseRequest,
    defaults: Decoding,
    earlier: tuple[Message, ...],
    *,
    user: str | None,
    id: str,
    kept: bool,
) -> Turn:
    """The turn that answers: instructions, the earlier conversation, then the input. Raises RequestError for a result without its call."""
    told = (Message("developer", asked.instructions),) if asked.instructions else ()
    given = messages(asked.input)
    made = {call.id for message in (*earlier, *given) for call in message.tool_calls}
    for message in given:
        if message.role == "tool" and message.tool_call_id not in made:
            raise RequestError(
                f"input: no earlier function_call has the call_id '{message.tool_call_id}'.",
                param="input",
                code="invalid_value",
            )
    store = kept if asked.store is None else asked.store
    wanted = asked.text.format if asked.text else None
    shown = wanted.model_dump(by_alias=True, exclude_unset=True) if wanted is not None else {"type": "text"}
    about = {
        "format": shown,
        "instructions": asked.instructions,
        "previous": asked.previous_response_id,
        "store": store,
        "parallel": asked.parallel,
        "before": len(told) + len(earlier),
    }
    metadata = {
        **(asked.metadata or {}),
        **({"user": asked.user} if asked.user else {}),
        OURS: json.dumps(about),
    }
    decoding = replace(
        defaults,
        temperature=defaults.temperature if asked.temperature is None else asked.temperature,
        top_p=defaults.top_p if asked.top_p is None else asked.top_p,
        max_tokens=asked.max_output_tokens or defaults.max_tokens,
        form=asked.form,
        top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
    return Turn(
        (*told, *earlier, *given),
        decoding,
        asked.offered,
        asked.choice,
        id,
        user or asked.user or "anonymous",
        metadata=metadata,
    )


def described(turn: Turn, created: int, *, parallel: bool) -> ResponseAnswer:
    """The response before anything is said: what was asked."""
    about = _about(turn)
    named = turn.tool_choice not in ("auto", "none", "required")
    tools = [
        {
            "type": "function",
            "name": t.name,
            "description": t.description,
            "parameters": dict(t.parameters),
            "strict": t.strict,
        }
        for t in turn.tools
    ]
    return ResponseAnswer(
        id=turn.id,
        object="response",
        created_at=created,
        status="in_progress",
        error=None,
        incomplete_details=None,
        instructions=about.get("instructions"),
        max_output_tokens=turn.decoding.max_tokens,
        model=turn.variant,
        output=[],
        parallel_tool_calls=parallel,
        previous_response_id=about.get("previous"),
        store=bool(about.get("store")),
        temperature=turn.decoding.temperature,
        top_p=turn.decoding.top_p,
        text={"format": about.get("format", {"type": "text"})},
        tool_choice={"type": "function", "name": turn.tool_choice} if named else turn.tool_choice,
        tools=tools,
        truncation="disabled",
        usage=None,
        user=turn.metadata.get("user"),
        metadata={k: v for k, v in turn.metadata.items() if k not in ("user", OURS)},
    )


def _about(turn: Turn) -> dict[str, Any]:
    return dict(json.loads(turn.metadata.get(OURS, "{}")))


def _earlier(asked: ResponseRequest, kept: TurnStore | None, user: str | None) -> tuple[Message, ...]:
    """The conversation up to previous_response_id, its instructions left out. Raises RequestError: 409 without a record, 404 if unknown."""
    if kept is None and (asked.store or asked.previous_response_id):
        field = "store" if asked.store else "previous_response_id"
        raise RequestError(
            f"{field}: this stack keeps no responses: it has no record layer outside of its others. Make "
            "`- kind: record` the first of its layers.",
            status=409,
            param=field,
            code="no_record_layer",
        )
    if not asked.previous_response_id:
        return ()
    found = _found(kept, asked.previous_response_id, user, "previous_response_id")
    said = found.completion
    skipped = 1 if _about(found.turn).get("instructions") else 0
    calls = (
        () if said.refusal else said.tool_calls[: None if _about(found.turn).get("parallel", True) else 1]
    )  # those that were sent
    return (*found.turn.messages[skipped:], Message("assistant", said.text, tool_calls=calls))


def _found(kept: TurnStore | None, response_id: str, user: str | None, param: str | None = None) -> Stored:
    found = kept.find(response_id) if kept is not None and response_id.startswith("resp_") else None
    theirs = found is not None and user in (None, found.turn.user)
    if found is None or not theirs or found.finish_reason is None or not _about(found.turn).get("store"):
        raise RequestError(
            f"No response{' of yours' if user else ''} with the id '{response_id}' is kept here.",
            status=404,
            param=param,
            code="not_found",
        )
    return found


def _items(message: Message, stem: str) -> Sequence[dict[str, Any]]:
    if message.role == "tool":
        return [
            {
                "type": "function_call_output",
                "id": f"fco_{stem}",
                "call_id": message.tool_call_id,
                "output": message.content,
            }
        ]
    kind = "output_text" if message.role == "assistant" else "input_text"
    said = (
        [
            {
                "type": "message",
                "id": f"msg_{stem}",
                "role": message.role,
                "status": "completed",
                "content": [{"type": kind, "text": message.content}],
            }
        ]
        if message.content or not message.tool_calls
        else []
    )
    return said + [
        {
            "type": "function_call",
            "id": f"fc_{stem}_{i}",
            "call_id": c.id,
            "name": c.name,
            "arguments": c.arguments,
            "status": "completed",
        }
        for i, c in enumerate(message.tool_calls)
    ]
