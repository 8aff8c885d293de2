"""/openapi.json against the server itself: every route describes itself, every answer has the shape it says, every status is declared."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from fastapi.openapi.models import OpenAPI
from fastapi.routing import APIRoute
from openai.types.completion_create_params import CompletionCreateParamsBase
from scripted import Scripted, body

from demeanor.server.application import ENDPOINTS, app, router
from demeanor.server.auth import from_digests
from demeanor.server.chat import ChatChunk
from demeanor.server.completions import CompletionChunk
from demeanor.server.endpoint import document
from demeanor.server.schemas import ErrorAnswer, ResponseObject
from demeanor.store.keys import digest

DOCUMENT = document(app(Scripted()))
ROUTES = [
    route
    for routes in (*(endpoint.router.routes for endpoint in ENDPOINTS), router.routes)
    for route in routes
    if isinstance(route, APIRoute)
]
CHUNKS: dict[str, type[ResponseObject]] = {
    "/v1/chat/completions": ChatChunk,
    "/v1/completions": CompletionChunk,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": body("the ferry?", logprobs=True),
    "/v1/completions": {"model": "harbour-desk:base", "prompt": "Hi", "logprobs": 1},
    "/v1/moderations": {"input": ["a card", "b"]},
    "/v1/feedback": {"id": "chatcmpl-1", "score": 1},
}
BODIES["/v1/embeddings"] = {"model": "harbour-desk:base", "input": "a ferry"}
ASKED = [
    route
    for route in ROUTES
    if ("POST" not in route.methods or route.path in BODIES)
    and "{response_id}" not in route.path  # those need a kept response, the others a database or live traffic
    and not route.path.startswith(("/v1/demeanor/", "/v1/history"))
]


def test_every_route_is_documented_and_nothing_else() -> None:
    routes = {(r.path_format, min(r.methods).lower()) for r in ROUTES}
    documented = {(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert routes == documented
    assert len(documented) == 27


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{min(r.methods)} {r.path}")
def test_a_route_describes_its_answer_its_body_and_its_errors(route: APIRoute) -> None:
    path, method = route.path_format, min(route.methods).lower()
    operation = DOCUMENT["paths"][path][method]
    assert operation["summary"] == route.summary
    assert {"200", "500"} <= set(operation["responses"])
    assert set(operation["responses"]) == {str(status) for status in route.responses}
    assert ("requestBody" in operation) == (method in ("post", "put"))
    for status, response in operation["responses"].items():
        assert status == "200" or set(response["content"]) == {"application/json"}
    assert route.response_model is not None or path in (
        "/metrics",
        "/openapi.json",
        "/v1/history/{conversation_id}",
    )


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


async def ask(client: httpx.AsyncClient, route: APIRoute, **changes: Any) -> httpx.Response:
    method, path = min(route.methods), route.path_format.replace("{model_id}", "harbour-desk:base")
    if method != "POST":
        return await client.request(method, path, headers=changes.get("headers"))
    given = {"json": BODIES[route.path]} | changes
    return await client.request(method, path, **given)


@pytest.mark.parametrize("route", ASKED, ids=lambda r: r.path)
async def test_an_answer_has_exactly_the_documented_shape(
    client: httpx.AsyncClient, assistant: Scripted, route: APIRoute
) -> None:
    if route.path == "/v1/feedback":
        turn_id = (await client.post("/v1/chat/completions", json=body())).json()["id"]
        response = await ask(client, route, json={"id": turn_id, "score": 1})
    else:
        response = await ask(client, route)
    assert response.status_code == 200, response.text
    media = "text/plain" if route.path == "/metrics" else "application/json"
    assert response.headers["content-type"].startswith(media)
    assert (
        media
        in DOCUMENT["paths"][route.path_format][min(route.methods).lower()]["responses"]["200"]["content"]
    )
    if route.response_model is not None:
        read = route.response_model.model_validate_json(response.content)
        assert read.model_dump(mode="json", exclude_unset=True, by_alias=True) == response.json()


@pytest.mark.parametrize("route", [r for r in ASKED if r.path in CHUNKS], ids=lambda r: r.path)
async def test_every_event_of_a_stream_has_the_documented_shape(
    client: httpx.AsyncClient, route: APIRoute
) -> None:
    response = await ask(
        client,
        route,
        json=BODIES[route.path] | {"stream": True, "stream_options": {"include_usage": True}},
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "text/event-stream" in DOCUMENT["paths"][route.path]["post"]["responses"]["200"]["content"]
    for frame in response.text.split("\n\n")[:-2]:
        data = frame.removeprefix("data: ")
        assert CHUNKS[route.path].model_validate_json(data).model_dump(
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


@pytest.mark.parametrize("route", ASKED, ids=lambda r: r.path)
@pytest.mark.parametrize(("what", "changes"), TROUBLE, ids=[t[0] for t in TROUBLE])
async def test_whatever_goes_wrong_is_a_declared_status_and_an_error_of_the_declared_shape(
    what: str,
    changes: dict[str, Any],
    route: APIRoute,
) -> None:
    transport = httpx.ASGITransport(
        app(Scripted(), keys=from_digests({digest("a"): "ann"}), max_body_bytes=4000)
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://desk") as client:
        asked: dict[str, Any] = {"headers": {"authorization": "Bearer a"}} | {
            k: v for k, v in changes.items() if k in ("headers", "json")
        }
        if "change" in changes and route.path in BODIES:
            asked["json"] = BODIES[route.path] | changes["change"]
        if "text" in changes:
            asked["json"] = {
                "/v1/chat/completions": body(changes["text"]),
                "/v1/completions": {"model": "harbour-desk:base", "prompt": changes["text"]},
            }.get(route.path, BODIES.get(route.path))
        response = await ask(client, route, **asked)
    assert response.status_code in (200, *route.responses), f"{response.status_code} is not declared"
    if response.status_code != 200:
        assert ErrorAnswer.model_validate_json(response.content).model_dump(mode="json") == response.json()


async def test_it_is_served_with_the_name_of_the_stack(client: httpx.AsyncClient) -> None:
    served = (await client.get("/openapi.json")).json()
    assert served == DOCUMENT
    assert (served["openapi"], served["info"]["title"]) == ("3.1.0", "harbour-desk")
