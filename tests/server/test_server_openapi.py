"""/openapi.json against the server itself: every route is in it, every answer has the shape it says, every status is declared."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from fastapi.openapi.models import OpenAPI
from fastapi.openapi.utils import get_openapi
from openai.types.completion_create_params import CompletionCreateParamsBase
from scripted import Scripted, body

from demeanor.server.app import app
from demeanor.server.auth import from_digests
from demeanor.server.openapi import OPERATIONS, ErrorAnswer, Operation, document
from demeanor.store.keys import digest

DOCUMENT = document("harbour-desk")
PAGE = ("/", "/static/")
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": body("the ferry?", logprobs=True),
    "/v1/completions": {"model": "harbour-desk:base", "prompt": "Hi", "logprobs": 1},
    "/v1/moderations": {"input": ["a card", "b"]},
    "/v1/feedback": {"id": "chatcmpl-1", "score": 1},
}
BODIES["/v1/embeddings"] = {"model": "harbour-desk:base", "input": "a ferry"}
MINE = [
    o for o in OPERATIONS if (o.request is None or o.path in BODIES) and "{response_id}" not in o.path
]  # those need a kept response


def test_every_route_of_the_server_is_documented_and_nothing_else() -> None:
    """FastAPI's own walk over the routes is the peer; the chat page's files are no API."""
    walked = get_openapi(title="", version="", routes=app(Scripted()).routes)["paths"]
    routes = {
        (path, method)
        for path, methods in walked.items()
        for method in methods
        if path != "/" and not path.startswith("/static/")
    }
    documented = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert routes - documented == set(), (
        "a route without a line in OPERATIONS of demeanor/server/openapi.py: add one"
    )
    assert documented - routes == set(), "documented, and no route"


def test_it_is_openapi_and_every_reference_resolves() -> None:
    OpenAPI.model_validate(DOCUMENT)
    text = orjson.dumps(DOCUMENT).decode()
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= set(DOCUMENT["components"]["schemas"])
    ids = [o["operationId"] for methods in DOCUMENT["paths"].values() for o in methods.values()]
    assert len(ids) == len(set(ids))


def test_a_request_schema_holds_every_field_the_sdk_documents_and_says_which_are_refused() -> None:
    properties = DOCUMENT["components"]["schemas"]["CompletionRequest"]["properties"]
    assert set(CompletionCreateParamsBase.__annotations__) <= set(properties)
    assert properties["best_of"]["enum"] == [1, None]
    assert properties["suffix"]["enum"] == [None]
    assert "not supported" in properties["suffix"]["description"]
    assert DOCUMENT["components"]["schemas"]["CompletionRequest"]["required"] == ["model", "prompt"]
    assert DOCUMENT["components"]["schemas"]["CompletionRequest"]["additionalProperties"] is False


def path_of(operation: Operation) -> str:
    return operation.path.replace("{model_id}", "harbour-desk:base")


async def ask(client: httpx.AsyncClient, operation: Operation, **changes: Any) -> httpx.Response:
    if operation.request is None:
        return await client.request(operation.method, path_of(operation), headers=changes.get("headers"))
    given = {"json": BODIES[operation.path]} | changes
    return await client.request(operation.method, path_of(operation), **given)


@pytest.mark.parametrize("operation", MINE, ids=lambda o: o.path)
async def test_an_answer_has_exactly_the_documented_shape(
    client: httpx.AsyncClient, assistant: Scripted, operation: Operation
) -> None:
    if operation.path == "/v1/feedback":
        turn_id = (await client.post("/v1/chat/completions", json=body())).json()["id"]
        response = await ask(client, operation, json={"id": turn_id, "score": 1})
    else:
        response = await ask(client, operation)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(operation.media)
    if operation.answer is not None:
        read = operation.answer.model_validate_json(response.content)
        assert read.model_dump(mode="json", exclude_unset=True, by_alias=True) == response.json()


@pytest.mark.parametrize("operation", [o for o in MINE if o.chunk is not None], ids=lambda o: o.path)
async def test_every_event_of_a_stream_has_the_documented_shape(
    client: httpx.AsyncClient, operation: Operation
) -> None:
    response = await ask(
        client,
        operation,
        json=BODIES[operation.path] | {"stream": True, "stream_options": {"include_usage": True}},
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "text/event-stream" in DOCUMENT["paths"][operation.path]["post"]["responses"]["200"]["content"]
    assert operation.chunk is not None
    for frame in response.text.split("\n\n")[:-2]:
        data = frame.removeprefix("data: ")
        assert operation.chunk.model_validate_json(data).model_dump(
            mode="json", exclude_unset=True
        ) == orjson.loads(data)


TROUBLE: list[tuple[str, dict[str, Any]]] = [
    ("no key", {"headers": {}}),
    ("a form", {"headers": {"authorization": "Bearer a", "content-type": "text/plain"}}),
    ("nothing", {"json": {}}),
    ("too long", {"json": {"x": "x" * 5000}}),
    ("a model elsewhere", {"change": {"model": "elsewhere"}}),
    ("no such field", {"change": {"temprature": 1}}),
    ("a crash", {"text": "a crash"}),
    ("draining", {"text": "drain"}),
    ("sunk", {"text": "sunk"}),
    ("a limit", {"text": "too fast"}),
    ("too long a prompt", {"text": "a novel"}),
]


@pytest.mark.parametrize("operation", MINE, ids=lambda o: o.path)
@pytest.mark.parametrize(("what", "changes"), TROUBLE, ids=[t[0] for t in TROUBLE])
async def test_whatever_goes_wrong_is_a_declared_status_and_an_error_of_the_declared_shape(
    what: str,
    changes: dict[str, Any],
    operation: Operation,
) -> None:
    transport = httpx.ASGITransport(
        app(Scripted(), keys=from_digests({digest("a"): "ann"}), max_body_bytes=4000)
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
        asked: dict[str, Any] = {"headers": {"authorization": "Bearer a"}} | {
            k: v for k, v in changes.items() if k in ("headers", "json")
        }
        if "change" in changes and operation.request is not None:
            asked["json"] = BODIES[operation.path] | changes["change"]
        if "text" in changes:
            asked["json"] = {
                "/v1/chat/completions": body(changes["text"]),
                "/v1/completions": {"model": "harbour-desk:base", "prompt": changes["text"]},
            }.get(operation.path, BODIES.get(operation.path))
        response = await ask(client, operation, **asked)
    assert response.status_code in (200, *operation.statuses), f"{response.status_code} is not declared"
    if response.status_code != 200:
        assert ErrorAnswer.model_validate_json(response.content).model_dump(mode="json") == response.json()


async def test_it_is_served_with_the_name_of_the_stack(client: httpx.AsyncClient) -> None:
    served = (await client.get("/openapi.json")).json()
    assert served == DOCUMENT
    assert (served["openapi"], served["info"]["title"]) == ("3.1.0", "harbour-desk")
