"""The HTTP surface of an assistant: OpenAI's chat completions and models, a health check, the chat page.

In: an Assistant. Out: a FastAPI app. It knows no engine, no layer and no stack file; it stamps every answer with the
stack key and tells what every layer did.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from demeanor.core.errors import EngineError, RequestError
from demeanor.core.types import Event, fold
from demeanor.server import problems
from demeanor.server.admission import Operations
from demeanor.server.answers import ChatCompletion, choice, usage
from demeanor.server.assistant import Assistant, ModelCard
from demeanor.server.auth import KeyRing, KeyStore
from demeanor.server.completions import completions
from demeanor.server.embeddings import embeddings
from demeanor.server.feedback import feedback
from demeanor.server.flow import flow, gathered, while_connected
from demeanor.server.health import health
from demeanor.server.incoming import body
from demeanor.server.metrics import Metrics
from demeanor.server.middleware import add_middleware
from demeanor.server.moderations import moderations
from demeanor.server.openapi import openapi
from demeanor.server.parse import parse, turns
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.responses import responses
from demeanor.server.static import page
from demeanor.server.stream import EventStream, chunks
from demeanor.server.trace import trace

MAX_BODY_BYTES = 1 << 20


def app(
    assistant: Assistant,
    *,
    keys: KeyStore | KeyRing | None = None,
    hosts: Collection[str] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    operations: Operations | None = None,
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
) -> FastAPI:
    """Serve an assistant. Without `keys` only requests to loopback names, and to `hosts`, are answered.

    `clock` gives monotonic seconds for durations, `now` seconds since 1970 for `created`.
    """
    run = operations or Operations()
    api = FastAPI(title=assistant.name, docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics(run)
    observers = (run.load.observe, metrics.observe, *run.observers)
    add_middleware(api, keys=keys, hosts=hosts, operations=run, observers=observers, clock=clock)
    for error in (RequestError, EngineError, HTTPException):
        api.add_exception_handler(error, _problem)
    api.include_router(_models(assistant, created=int(now())))
    api.include_router(_chat(assistant, max_body_bytes, clock, now))
    api.include_router(completions(assistant, max_body_bytes, clock, now))
    api.include_router(responses(assistant, max_body_bytes, clock, now))
    api.include_router(embeddings(assistant, max_body_bytes))
    api.include_router(moderations(assistant, max_body_bytes))
    api.include_router(feedback(assistant, max_body_bytes))
    api.include_router(health(assistant, run, metrics))
    api.include_router(openapi(assistant.name))
    api.include_router(_pages())
    return api


async def _problem(request: Request, error: Exception) -> Response:
    return problems.response(problems.refusal_of(error, request.state.request_id))


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json", headers={"cache-control": "no-store"})


def _models(assistant: Assistant, created: int) -> APIRouter:
    router = APIRouter(prefix="/v1/models")

    def shown(card: ModelCard) -> dict[str, Any]:
        about = {"description": card.description, "stack_key": card.stack_key, "layers": list(card.layers)}
        return {
            "id": card.id,
            "object": "model",
            "created": created,
            "owned_by": "demeanor",
            "demeanor": about,
        }

    @router.get("")
    async def models(request: Request) -> Response:
        about = {"name": assistant.name, "stack_key": assistant.stack_key, "examples": assistant.examples()}
        return _json(
            {"object": "list", "data": [shown(card) for card in assistant.models()], "demeanor": about}
        )

    @router.get("/{model_id:path}")
    async def model(request: Request, model_id: str) -> Response:
        card = assistant.card(model_id)
        request.state.stack_key = card.stack_key
        return _json(shown(card))

    return router


def _chat(
    assistant: Assistant,
    max_body_bytes: int,
    clock: Callable[[], float],
    now: Callable[[], float],
) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        started = clock()
        user = CURRENT_REQUEST.get().user
        asked = parse(await body(request, max_body_bytes))
        card, respond = assistant.card(asked.model), assistant.respond(asked.model)
        request.state.stack_key = card.stack_key
        request_id: str = request.state.request_id
        completion_id = f"chatcmpl-{request_id.removeprefix('req_')}"
        made = turns(asked, card, assistant.defaults(), user=user, id=completion_id)
        head = {
            "id": completion_id,
            "created": int(now()),
            "model": card.id,
            "system_fingerprint": card.stack_key,
        }

        def traced(events: Sequence[Sequence[Event]]) -> dict[str, Any]:
            return trace(card, events, 1000 * (clock() - started))

        if not asked.stream:
            choices = await while_connected(request.receive, gathered(respond, made))
            return _plain(
                choices, head, traced(choices), logprobs=bool(asked.logprobs), parallel=asked.parallel
            )
        options = asked.stream_options
        return EventStream(
            chunks(
                flow(respond, made),
                len(made),
                head | {"object": "chat.completion.chunk"},
                logprobs=bool(asked.logprobs),
                include_usage=bool(options and options.include_usage),
                parallel=asked.parallel,
                trace=traced,
            ),
            lambda error: problems.body(problems.refusal_of(error, request_id)),
        )

    return router


def _plain(
    choices: list[list[Event]],
    head: dict[str, Any],
    traced: dict[str, Any],
    *,
    logprobs: bool,
    parallel: bool,
) -> Response:
    completions = [fold(events) for events in choices]
    answer = ChatCompletion(
        **head,
        object="chat.completion",
        usage=usage(completions),
        demeanor=traced,
        choices=[
            choice(i, completion, logprobs=logprobs, parallel=parallel)
            for i, completion in enumerate(completions)
        ],
    )
    headers = {"cache-control": "no-store", "x-demeanor-ms": str(traced["ms"])}
    return Response(answer.encode(), media_type="application/json", headers=headers)


def _pages() -> APIRouter:
    router = APIRouter()
    router.add_api_route("/", page("chat.html"), methods=["GET"])
    for name in ("chat.js", "trace.js", "sse.js", "thumbs.js", "dom.js", "chat.css", "icon.svg"):
        router.add_api_route(f"/static/{name}", page(name), methods=["GET"])

    return router
