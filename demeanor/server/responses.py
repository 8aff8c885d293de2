"""/v1/responses: answers as items, whole or streamed, and kept ones to continue, read again and delete.

In: OpenAI's body. Out: the same turns, layers and middleware as chat. A kept response is its recorded turn (store/), so it needs the
stack's record layer; nothing is kept twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request, Response

from demeanor.core.errors import ContextError, DecodingError, DemeanorError, RequestError, TextError
from demeanor.core.types import Completion, Message, Turn, fold
from demeanor.server.approvals import ApprovalField, Approver, given_back
from demeanor.server.assistant import TurnStore, routed
from demeanor.server.chat import experiment_header, of_tool, sent_calls, trace, waiting_calls
from demeanor.server.client_settings import refuse_fixed
from demeanor.server.endpoint import (
    AUTHENTICATED,
    GENERATED,
    documented,
    json_response,
    read_body,
    read_query,
    state_of,
    with_errors,
)
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.responses_answer import (
    Deleted,
    InputItems,
    ResponseAnswer,
    StreamedResponse,
    StreamEvent,
    blank_response,
    finished_response,
    input_items,
)
from demeanor.server.responses_request import (
    PageQuery,
    ResponseQuery,
    ResponseRequest,
    approval_of,
    response_fields,
    response_turn,
)
from demeanor.server.schemas import ResponseObject
from demeanor.server.streaming import EventStream, Step, all_events, interleaved
from demeanor.store.database import Stored

FIELDS = {"response_format": "text.format", "max_tokens": "max_output_tokens"}
"""Fields of chat that have another name here."""
router = APIRouter()


@router.post(
    "/v1/responses",
    **documented(
        "One answer as items, kept if the stack records turns",
        (409, *GENERATED),
        ResponseAnswer,
        body=ResponseRequest,
        event=StreamEvent,
    ),
)
async def create_response(request: Request) -> Response:
    state = state_of(request)
    assistant, started = state.assistant, state.clock()
    body = await read_body(request, ResponseRequest)
    refuse_fixed(assistant.client_access().settings, body)
    assistant.card(body.model)  # an unknown model is the first thing to say
    store, user = assistant.turn_store(), CURRENT_REQUEST.get().user
    request_id: str = request.state.request_id
    turn = response_turn(
        body,
        assistant.defaults(),
        _conversation(body, store, user),
        user=user,
        id=f"resp_{request_id.removeprefix('req_')}",
        recorded=store is not None,
    )
    card, respond = routed(assistant, body.model, user or body.user, turn.messages)
    respond = with_errors(respond, of_field)
    request.state.stack_key = card.stack_key
    turn = replace(turn, variant=card.id, stack_key=card.stack_key)
    approver = state.approver.of(assistant.approval_store())
    if (given := approval_of(body.input)) is not None:
        turn, approval = await decided(approver, turn, given)
        respond = given_back(respond, approver.store, approval)
    blank = blank_response(turn, int(state.now()))
    traced = partial(trace, card, state.clock, started, shown=assistant.client_access().shown)

    async def finished(completion: Completion) -> ResponseAnswer:
        waiting = await waiting_calls(approver.waiting, turn, completion.events, parallel=body.parallel)
        response = finished_response(blank, completion, logprobs=body.logprobs, waiting=waiting)
        asked = {} if waiting is None else {"approvals": [waiting.json(0)]}
        return response.model_copy(update={"demeanor": traced([completion.events]) | asked})

    if body.stream:
        streamed = StreamedResponse(blank, logprobs=body.logprobs)
        events = stream_events(interleaved(respond, [turn]), streamed, finished)
        return ResponseStream(events, request_id, streamed, experiment_header(card))
    (whole,) = await all_events(request, respond, [turn])
    answer = await finished(fold(whole))
    headers = {"x-demeanor-ms": str((answer.demeanor or {})["ms"]), **experiment_header(card)}
    return json_response(answer, headers)


@router.get(
    "/v1/responses/{response_id}",
    **documented("A kept response", (400, 404, *AUTHENTICATED), ResponseAnswer, query=ResponseQuery),
)
async def retrieve_response(request: Request, response_id: str) -> Response:
    read_query(request, ResponseQuery)
    state = state_of(request)
    found = _kept(state.assistant.turn_store(), response_id, CURRENT_REQUEST.get().user)
    blank, done = blank_response(found.turn, int(found.started.timestamp())), found.completion
    logprobs = found.turn.decoding.top_logprobs is not None
    approver = state.approver.of(state.assistant.approval_store())
    waiting = await waiting_calls(
        approver.shown_again, found.turn, done.events, parallel=blank.parallel_tool_calls
    )
    return json_response(finished_response(blank, done, logprobs=logprobs, waiting=waiting))


@router.delete(
    "/v1/responses/{response_id}", **documented("Forget a kept response", (404, *AUTHENTICATED), Deleted)
)
async def delete_response(request: Request, response_id: str) -> Response:
    store = state_of(request).assistant.turn_store()
    _kept(store, response_id, CURRENT_REQUEST.get().user)
    assert store is not None
    await store.forget(response_id)
    return json_response(Deleted(id=response_id, object="response", deleted=True))


@router.get(
    "/v1/responses/{response_id}/input_items",
    **documented("The input of a kept response", (400, 404, *AUTHENTICATED), InputItems, query=PageQuery),
)
async def list_input_items(request: Request, response_id: str) -> Response:
    page = read_query(request, PageQuery)
    found = _kept(state_of(request).assistant.turn_store(), response_id, CURRENT_REQUEST.get().user)
    items, has_more = page.select(input_items(found.turn))
    answer = InputItems(
        object="list",
        data=items,
        first_id=items[0]["id"] if items else None,
        last_id=items[-1]["id"] if items else None,
        has_more=has_more,
    )
    return json_response(answer)


async def decided(approver: Approver, turn: Turn, given: ApprovalField) -> tuple[Turn, str]:
    """The turn with a person's decisions, and the id of their approval. Raises RequestError (400) about `input`."""
    try:
        return await approver.decided(turn, given)
    except RequestError as error:
        raise RequestError(str(error), param="input", code=error.code) from None


async def stream_events(
    steps: AsyncGenerator[Step, None],
    streamed: StreamedResponse,
    finished: Callable[[Completion], Awaitable[ResponseAnswer]],
) -> AsyncGenerator[StreamEvent, None]:
    """The events to send; nothing before the first visible one, so that an early error is still an HTTP status."""
    async with aclosing(steps):
        async for _, event in steps:
            if event is None:
                to_send = streamed.end(await finished(streamed.completion()))
            else:
                to_send = streamed.add(event)
            for each in to_send:
                yield each


def of_field(error: DemeanorError, turn: Turn) -> DemeanorError:
    """The error by the name that its field has at this endpoint."""
    if isinstance(error, ContextError):
        return RequestError(str(error), param="input", code="context_length_exceeded")
    if isinstance(error, TextError):
        return RequestError(error.what, param="input", code="invalid_value")
    if isinstance(error, DecodingError):
        error = of_tool(error, turn, "parameters")
        return DecodingError(str(error), FIELDS.get(error.param, error.param))
    return error


class ResponseStream(EventStream):
    """Server-sent events that have their type as a name, as this endpoint's do."""

    def __init__(
        self,
        events: AsyncGenerator[StreamEvent, None],
        request_id: str,
        streamed: StreamedResponse,
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(events, request_id, headers)
        self.streamed = streamed

    def frame(self, chunk: ResponseObject) -> bytes:
        name = chunk.type if isinstance(chunk, StreamEvent) else "error"
        return f"event: {name}\n".encode() + super().frame(chunk)

    def last_chunk(self, error: RequestError) -> ResponseObject:
        return self.streamed.failed(error)


def _conversation(body: ResponseRequest, store: TurnStore | None, user: str | None) -> tuple[Message, ...]:
    """The conversation up to previous_response_id without its instructions. Raises RequestError: 409 without a record, 404 if unknown."""
    if store is None and (body.store or body.previous_response_id):
        field = "store" if body.store else "previous_response_id"
        raise RequestError(
            f"{field}: this stack keeps no responses: it has no record layer outside of its others. Make "
            "`- kind: record` the first of its layers.",
            status=409,
            param=field,
            code="no_record_layer",
        )
    if not body.previous_response_id:
        return ()
    found = _kept(store, body.previous_response_id, user, "previous_response_id")
    fields, completion = response_fields(found.turn), found.completion
    calls = () if completion.refusal else sent_calls(completion, parallel=fields.get("parallel", True))
    messages = found.turn.messages[1:] if fields.get("instructions") else found.turn.messages
    return (*messages, Message("assistant", completion.text, tool_calls=tuple(calls)))


def _kept(store: TurnStore | None, response_id: str, user: str | None, param: str | None = None) -> Stored:
    found = store.find(response_id) if store is not None and response_id.startswith("resp_") else None
    is_own = found is not None and user in (None, found.turn.user)
    if (
        found is None
        or not is_own
        or found.finish_reason is None
        or not response_fields(found.turn).get("store")
    ):
        raise RequestError(
            f"No response{' of yours' if user else ''} with the id '{response_id}' is kept here.",
            status=404,
            param=param,
            code="not_found",
        )
    return found
