"""The HTTP server of an assistant: OpenAI's API, health and metrics, the chat page.

In: an Assistant. Out: a FastAPI app. It knows no engine, no layer and no stack file; each endpoint is a file with a `router`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Literal, cast

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute

from demeanor.core.errors import EngineError, RequestError, StoreError
from demeanor.server import (
    chat,
    completions,
    embeddings,
    error_responses,
    feedback,
    history,
    labelling,
    models,
    moderations,
    operator_policy,
    operator_turns,
    operators,
    responses,
    votes,
)
from demeanor.server.admission import Operations
from demeanor.server.approvals import Approver
from demeanor.server.assistant import PublishedAssistant, ServedAssistant, traffic_of
from demeanor.server.auth import KeyRing, KeyStore
from demeanor.server.endpoint import (
    UNAUTHENTICATED,
    AppState,
    document,
    documented,
    json_response,
    operation_id,
    state_of,
)
from demeanor.server.labelling import Labelling
from demeanor.server.metrics import Metrics
from demeanor.server.middleware import add_middleware
from demeanor.server.request_context import key_models
from demeanor.server.schemas import ResponseObject
from demeanor.server.static_files import names_in, static_file

PAGES = {
    "chat.html": ("/",),
    "operator.html": ("/operator/", "/operator/policy", "/operator/experiments", "/operator/evaluators"),
}
"""The addresses of the pages; every other file of the folder is under /static/."""
ENDPOINTS = (
    models,
    chat,
    completions,
    responses,
    embeddings,
    moderations,
    feedback,
    votes,
    history,
    operators,
    operator_turns,
    operator_policy,
)
router = APIRouter()


def app(
    assistant: ServedAssistant,
    *,
    keys: KeyStore | KeyRing | None = None,
    hosts: Collection[str] = (),
    operations: Operations | None = None,
    max_body_bytes: int | None = None,
    pages: Sequence[BaseRoute] = (),
    clock: Callable[[], float] = time.monotonic,
    now: Callable[[], float] = time.time,
    approver: Approver | None = None,
    labels: Labelling | None = None,
) -> FastAPI:
    """Serve an assistant. Without `keys` only requests to loopback names, and to `hosts`, are answered; with them only what
    is published.

    `pages`: further routes beside the chat page, behind the same middleware; `labels`: the labelling page at /label, whose keys are
    its links. `clock` gives monotonic seconds for durations, `now` seconds since 1970 for `created`.
    """
    operations = operations or Operations()
    if max_body_bytes is not None:
        operations = replace(operations, max_body_bytes=max_body_bytes)
    metrics = Metrics(operations, lambda: traffic_of(assistant))
    api = _with_endpoints(assistant.name)
    offered = assistant
    if keys is not None:
        offered = cast(ServedAssistant, PublishedAssistant(assistant, key_models))
    api.state.demeanor = AppState(
        offered, operations, metrics, clock, now, int(now()), approver or Approver(now=now)
    )
    observers = (operations.load.observe, metrics.observe, *operations.observers)
    add_middleware(api, keys=keys, hosts=hosts, operations=operations, observers=observers, clock=clock)
    for error in (RequestError, EngineError, StoreError, HTTPException):
        api.add_exception_handler(error, _error_response)
    for name in names_in("pages"):
        for path in PAGES.get(name, (f"/static/{name}",)):
            api.add_api_route(path, static_file("pages", name), methods=["GET"], include_in_schema=False)
    described = _document()
    api.state.openapi = orjson.dumps(described | {"info": described["info"] | {"title": assistant.name}})
    if labels is not None:
        labelling.add_to(api, labels)
    api.router.routes.extend(pages)
    return api


def _with_endpoints(title: str) -> FastAPI:
    """An app that answers at the documented addresses."""
    api = FastAPI(
        title=title,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        generate_unique_id_function=operation_id,
    )
    for endpoint in ENDPOINTS:
        api.include_router(endpoint.router)
    api.include_router(router)
    return api


@cache
def _document() -> dict[str, Any]:
    """The OpenAPI document of every app, but for its title: made once in a process, since it takes half a second."""
    return document(_with_endpoints("demeanor"))


def metrics_of(served: FastAPI) -> Metrics:
    """Return the running counts of an app."""
    state: AppState = served.state.demeanor
    return state.metrics


async def _error_response(request: Request, error: Exception) -> Response:
    refusal = error_responses.refusal_of(error, request.state.request_id)
    return error_responses.error_response(refusal)


class Health(ResponseObject):
    """How the server is."""

    status: Literal["ok", "ready", "draining", "failed"]
    name: str
    stack_key: str
    reason: str | None = None
    degraded: str | None = None
    tools: dict[str, int] | None = None
    """MCP servers, how many are connected, and how many of their tools are withheld."""
    notes: list[str] | None = None
    """What runs beside the answers and should have, but did not: shadows, evaluators, writes of experiments."""


@router.get("/healthz", **documented("Is the server alive?", UNAUTHENTICATED, Health))
async def healthz(request: Request) -> Response:
    return json_response(_health(request, "ok"))


READYZ = documented("Does the server take requests?", UNAUTHENTICATED, Health)
READYZ["responses"][503] = {"model": Health, "description": "Service Unavailable"}


@router.get("/readyz", **READYZ)
async def readyz(request: Request) -> Response:
    operations = state_of(request).operations
    if not operations.ready():
        return json_response(_health(request, "draining"), status=503)
    if operations.health and (reason := await operations.health()) is not None:
        failed = _health(request, "failed").model_copy(update={"reason": reason})
        return json_response(failed, status=503)
    ready = _health(request, "ready")
    if operations.degraded and (degraded := await operations.degraded()) is not None:
        ready = ready.model_copy(update={"degraded": degraded})
    if servers := operations.tool_servers():
        about = {
            "servers": len(servers),
            "connected": sum(server.state == "connected" for server in servers),
            "withheld": sum(server.withheld for server in servers),
        }
        ready = ready.model_copy(update={"tools": about})
    live = traffic_of(state_of(request).assistant)
    if live is not None and (notes := live.notes()):
        ready = ready.model_copy(update={"notes": notes})
    return json_response(ready)


def _health(request: Request, status: Literal["ok", "ready", "draining", "failed"]) -> Health:
    assistant = state_of(request).assistant
    return Health(status=status, name=assistant.name, stack_key=assistant.stack_key)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    **documented("Counters for Prometheus", (401, *UNAUTHENTICATED)),
)
async def metrics(request: Request) -> Response:
    headers = {"cache-control": "no-store", "content-type": CONTENT_TYPE_PLAIN_0_0_4}
    state = state_of(request)
    text = state.metrics.text()
    if state.operations.all_metrics is not None:
        text = await state.operations.all_metrics(text)
    return Response(text, headers=headers)


@router.get("/openapi.json", **documented("This document", UNAUTHENTICATED))
async def openapi(request: Request) -> Response:
    headers = {"cache-control": "no-cache"}
    return Response(request.app.state.openapi, media_type="application/json", headers=headers)
