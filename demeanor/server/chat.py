"""POST /v1/chat/completions: one or more answers to a conversation, whole or streamed."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response

from demeanor.core.types import fold
from demeanor.server.chat_request import ChatRequest, chat_turns
from demeanor.server.chat_response import (
    ChatChunk,
    ChatCompletion,
    StreamedChatChoice,
    chat_choice,
    stream_chunks,
    trace,
    usage,
)
from demeanor.server.endpoint import GENERATED, documented, json_response, read_body, state_of
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.streaming import EventStream, all_events, interleaved

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    **documented(
        "One or more answers to a conversation", GENERATED, ChatCompletion, body=ChatRequest, event=ChatChunk
    ),
)
async def create_chat_completion(request: Request) -> Response:
    state = state_of(request)
    started = state.clock()
    body = await read_body(request, ChatRequest)
    card, respond = state.assistant.card(body.model), state.assistant.respond(body.model)
    request.state.stack_key = card.stack_key
    request_id: str = request.state.request_id
    completion_id = f"chatcmpl-{request_id.removeprefix('req_')}"
    user = CURRENT_REQUEST.get().user
    turns = chat_turns(body, card, state.assistant.defaults(), user=user, id=completion_id)
    head = {
        "id": completion_id,
        "created": int(state.now()),
        "model": card.id,
        "system_fingerprint": card.stack_key,
    }
    traced = partial(trace, card, state.clock, started)
    if body.stream:
        choices = [
            StreamedChatChoice(i, logprobs=bool(body.logprobs), parallel=body.parallel)
            for i in range(len(turns))
        ]
        chunks = stream_chunks(
            interleaved(respond, turns),
            choices,
            partial(ChatChunk, **head, object="chat.completion.chunk"),
            include_usage=bool(body.stream_options and body.stream_options.include_usage),
            trace=traced,
        )
        return EventStream(chunks, request_id)
    events = await all_events(request, respond, turns)
    completions = [fold(e) for e in events]
    answer = ChatCompletion(
        **head,
        object="chat.completion",
        choices=[
            chat_choice(i, completion, logprobs=bool(body.logprobs), parallel=body.parallel)
            for i, completion in enumerate(completions)
        ],
        usage=usage(completions),
        demeanor=traced(events),
    )
    return json_response(answer, {"x-demeanor-ms": str(answer.demeanor["ms"])})
