"""GET /openapi.json: what the server takes and gives, as OpenAPI 3.1 made from the models that check requests and write answers.

In: the table of operations below, one line per address; tests/server/test_server_openapi.py walks every route against it. The
chat page's own files are no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from demeanor.server.answers import Answer, ChatChunk, ChatCompletion, ModelAnswer, ModelList
from demeanor.server.completion_answers import CompletionChunk, TextCompletion
from demeanor.server.completions import CompletionRequest
from demeanor.server.embeddings import EmbeddingList, EmbeddingRequest
from demeanor.server.feedback import FeedbackAnswer, FeedbackRequest
from demeanor.server.moderations import Moderation, ModerationRequest
from demeanor.server.protocol import ChatRequest
from demeanor.server.responses_answer import Deleted, InputItems, ResponseAnswer, StreamEvent
from demeanor.server.responses_body import ResponseRequest
from demeanor.server.responses_page import Asked, Page

REF = "#/components/schemas/{model}"
Statuses = tuple[int, ...]
LOCAL: Statuses = (421, 500)
GOVERNED: Statuses = (401, 403, 429, *LOCAL)
READ: Statuses = (400, 413, 415, *GOVERNED)
ANSWERED: Statuses = (404, 503, 504, *READ)


class Problem(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    """Every error there is."""

    error: Problem


class Health(Answer):
    """How the server is."""

    status: Literal["ok", "ready", "draining"]
    name: str
    stack_key: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One address: what it takes, what it gives (`chunk`: of each event if streamed; `media` if it is no JSON), how it fails."""

    method: Literal["get", "post", "delete"]
    path: str
    summary: str
    answer: type[BaseModel] | None
    statuses: Statuses
    request: type[BaseModel] | None = None
    chunk: type[BaseModel] | None = None
    media: str = "application/json"
    query: type[BaseModel] | None = None


OPERATIONS: Sequence[Operation] = (
    Operation(
        "post",
        "/v1/chat/completions",
        "One or more answers to a conversation",
        ChatCompletion,
        ANSWERED,
        ChatRequest,
        ChatChunk,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Raw text that the weights go on writing",
        TextCompletion,
        ANSWERED,
        CompletionRequest,
        CompletionChunk,
    ),
    Operation(
        "post",
        "/v1/responses",
        "One answer as items, kept if the stack records turns",
        ResponseAnswer,
        (409, *ANSWERED),
        ResponseRequest,
        StreamEvent,
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}",
        "A kept response",
        ResponseAnswer,
        (400, 404, *GOVERNED),
        query=Asked,
    ),
    Operation("delete", "/v1/responses/{response_id}", "Forget a kept response", Deleted, (404, *GOVERNED)),
    Operation(
        "get",
        "/v1/responses/{response_id}/input_items",
        "What a kept response was asked",
        InputItems,
        (400, 404, *GOVERNED),
        query=Page,
    ),
    Operation("post", "/v1/embeddings", "Texts as unit vectors", EmbeddingList, ANSWERED, EmbeddingRequest),
    Operation(
        "post",
        "/v1/moderations",
        "The policy layer's rules as a classifier",
        Moderation,
        ANSWERED,
        ModerationRequest,
    ),
    Operation(
        "post",
        "/v1/feedback",
        "What somebody thought of an answer",
        FeedbackAnswer,
        (404, 409, *READ),
        FeedbackRequest,
    ),
    Operation("get", "/v1/models", "The offered variants", ModelList, GOVERNED),
    Operation("get", "/v1/models/{model_id}", "One variant, listed or not", ModelAnswer, (404, *GOVERNED)),
    Operation("get", "/healthz", "Is the server alive?", Health, LOCAL),
    Operation("get", "/readyz", "Does the server take requests?", Health, (503, *LOCAL)),
    Operation("get", "/metrics", "Counters for Prometheus", None, (401, *LOCAL), media="text/plain"),
    Operation("get", "/openapi.json", "This document", None, LOCAL),
)


def openapi(name: str) -> APIRouter:
    """The route; the document is made once."""
    router, content = APIRouter(), orjson.dumps(document(name))

    @router.get("/openapi.json")
    async def shown() -> Response:
        return Response(content, media_type="application/json", headers={"cache-control": "no-cache"})

    return router


def document(name: str, operations: Sequence[Operation] = OPERATIONS) -> dict[str, Any]:
    """The whole document."""
    asked = {o.request for o in operations if o.request}
    given = {m for o in operations for m in (o.answer, o.chunk) if m} | {ErrorAnswer}
    by_name = sorted(
        [(m, "validation") for m in asked] + [(m, "serialization") for m in given],
        key=lambda pair: pair[0].__name__,
    )
    _, schemas = models_json_schema(by_name, ref_template=REF)  # type: ignore[arg-type]
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": name,
            "version": "1",
            "description": "OpenAI's wire format; a model is a variant of the stack. See docs/api.md.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.method + re.sub(r"\W+", "_", operation.path).rstrip("_"),
        "responses": {"200": _success(operation)}
        | {str(s): _failure(operation, s) for s in sorted(operation.statuses)},
    }
    if 401 in operation.statuses:
        found["security"] = [{}, {"key": []}]  # keys are optional: a local server has none
    if operation.request is not None:
        found["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(operation.request)}},
        }
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    asked = operation.query.model_json_schema()["properties"] if operation.query is not None else {}
    if names:
        found["parameters"] = [
            {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
        ]
        found["parameters"] += [
            {"name": n, "in": "query", "required": False, "schema": schema} for n, schema in asked.items()
        ]
    return found


def _success(operation: Operation) -> dict[str, Any]:
    plain = {"type": "string"} if operation.media.startswith("text/") else {"type": "object"}
    content: dict[str, Any] = {
        operation.media: {"schema": _ref(operation.answer) if operation.answer else plain}
    }
    if operation.chunk is not None:
        data = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": _ref(operation.chunk),
        }
        content["text/event-stream"] = {
            "schema": {  # of each event, as OpenAPI 3.2 has it under itemSchema
                "type": "object",
                "required": ["data"],
                "properties": {"data": data, "event": {"type": "string"}},
                "description": "with `stream: true`: events, the `data` of each a chunk of this schema or, too late for a status, an error; "
                "the last one is `[DONE]`",
            }
        }
    return {
        "description": "OK",
        "headers": {"x-request-id": {"schema": {"type": "string"}}},
        "content": content,
    }


def _failure(operation: Operation, status: int) -> dict[str, Any]:
    model = Health if operation.path == "/readyz" and status == 503 else ErrorAnswer
    found: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {"application/json": {"schema": _ref(model)}},
    }
    return found | (
        {"headers": {"retry-after": {"schema": {"type": "integer"}, "description": "seconds"}}}
        if status == 429
        else {}
    )


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}
