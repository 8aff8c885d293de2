"""/v1/history and /v1/comparisons: what is kept, for whom, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import Recording, body

from demeanor.server.application import app
from demeanor.server.auth import from_digests
from demeanor.store import comparisons
from demeanor.store.keys import digest

ANN, BOB = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
PUT = {"title": "Boats", "words": "The FERRY leaves", "conversation": {"id": "c-1", "turns": {"x": 1}}}


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path / "turns.db")
    yield made
    assert made.database is not None
    made.database.close()


@pytest.fixture
async def desk(recording: Recording) -> AsyncIterator[httpx.AsyncClient]:
    keys = from_digests({digest("a"): "ann", digest("b"): "bob"})
    transport = httpx.ASGITransport(app(recording, keys=keys))
    async with httpx.AsyncClient(transport=transport, base_url="http://desk") as made:
        yield made


async def listed(desk: httpx.AsyncClient, who: dict[str, str], **query: Any) -> list[str]:
    response = await desk.get("/v1/history", headers=who, params=query)
    assert response.status_code == 200, response.text
    return [entry["id"] for entry in response.json()["data"]]


async def test_a_conversation_is_kept_found_and_deleted_for_its_user_only(desk: httpx.AsyncClient) -> None:
    for id, title in (("c-1", "Boats"), ("c-2", "100% of_it")):
        kept = await desk.put(f"/v1/history/{id}", json={**PUT, "title": title}, headers=ANN)
        assert (kept.status_code, kept.json()["title"]) == (200, title)
    assert await listed(desk, ANN) == ["c-2", "c-1"]
    assert await listed(desk, ANN, query="ferry") == ["c-2", "c-1"]
    assert await listed(desk, ANN, query="boats") == ["c-1"]
    assert await listed(desk, ANN, query="0%") == ["c-2"]
    assert await listed(desk, ANN, query="%") == ["c-2"]
    assert await listed(desk, ANN, limit=1, skip=1) == ["c-1"]
    assert await listed(desk, BOB) == []
    found = await desk.get("/v1/history/c-1", headers=ANN)
    assert found.json() == PUT["conversation"]
    for call in (desk.get, desk.delete):
        assert (await call("/v1/history/c-1", headers=BOB)).status_code == 404
    assert (await desk.put("/v1/history/c-1", json={**PUT, "title": "Ships"}, headers=ANN)).status_code == 200
    assert await listed(desk, ANN, query="ships") == ["c-1"]
    assert (await desk.delete("/v1/history/c-1", headers=ANN)).json()["deleted"] is True
    assert await listed(desk, ANN) == ["c-2"]
    assert (await desk.get("/v1/history/c-1", headers=ANN)).status_code == 404


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"title": "x" * 201}, "title"),
        ({"conversation": []}, "conversation"),
        ({"words": 3}, "words"),
        ({"owner": "bob"}, "owner"),
    ],
)
async def test_a_wrong_entry_names_its_field(
    desk: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await desk.put("/v1/history/c-1", json={**PUT, **fields}, headers=ANN)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_ids_and_queries_are_checked(desk: httpx.AsyncClient) -> None:
    assert (await desk.put("/v1/history/c_1", json=PUT, headers=ANN)).status_code == 400
    assert (await desk.put("/v1/history/" + "c" * 65, json=PUT, headers=ANN)).status_code == 400
    response = await desk.get("/v1/history", headers=ANN, params={"limit": "0"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "limit")


async def test_without_keys_or_where_the_operator_says_so_nothing_is_kept_here(recording: Recording) -> None:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app(recording)), base_url="http://localhost"
    ) as open_desk:
        response = await open_desk.get("/v1/history")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "no_history")
        assert (await open_desk.get("/v1/models")).json()["demeanor"]["page"] == {
            "settings": ["system_prompt", "sampling", "max_tokens"],
            "history": False,
            "feedback": True,
        }
    recording.offered = replace(recording.offered, history=False)
    keys = from_digests({digest("a"): "ann"})
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app(recording, keys=keys)), base_url="http://desk"
    ) as desk:
        assert (await desk.get("/v1/history", headers=ANN)).status_code == 409


async def answers(desk: httpx.AsyncClient, who: dict[str, str]) -> list[str]:
    found = [await desk.post("/v1/chat/completions", json=body("hello"), headers=who) for _ in range(2)]
    return [response.json()["id"] for response in found]


async def test_a_vote_is_kept_with_both_turns(desk: httpx.AsyncClient, recording: Recording) -> None:
    left, right = await answers(desk, ANN)
    vote = {"first": left, "second": right, "verdict": "second", "blind": True, "comment": "shorter"}
    response = await desk.post("/v1/comparisons", json=vote, headers=ANN)
    assert response.status_code == 200
    assert response.json() == {"object": "comparison", "id": response.json()["id"], **vote}
    assert recording.database is not None
    (kept,) = comparisons.comparisons(recording.database)
    assert (kept.first, kept.second, kept.verdict, kept.blind, kept.user, kept.comment) == (
        left,
        right,
        "second",
        True,
        "ann",
        "shorter",
    )
    await recording.database.forget(left)
    assert comparisons.comparisons(recording.database) == []


async def test_only_votes_on_two_answers_of_ones_own_are_taken(
    desk: httpx.AsyncClient, recording: Recording
) -> None:
    left, right = await answers(desk, ANN)
    cases = [
        (BOB, {"first": left, "second": right}, 404, "first"),
        (ANN, {"first": left, "second": "chatcmpl-none"}, 404, "second"),
        (ANN, {"first": left, "second": left}, 400, "second"),
        (ANN, {"first": left, "second": right, "verdict": "both"}, 400, "verdict"),
    ]
    for who, fields, status, param in cases:
        response = await desk.post("/v1/comparisons", json={"verdict": "tie", **fields}, headers=who)
        assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    recording.records = False
    response = await desk.post(
        "/v1/comparisons", json={"verdict": "tie", "first": left, "second": right}, headers=ANN
    )
    assert (response.status_code, response.json()["error"]["code"]) == (409, "no_record_layer")
