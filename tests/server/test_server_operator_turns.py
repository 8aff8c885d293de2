"""Operators' routes: who may ask, what turns they find, marks, replays, and what the rules did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import Recording, body

from demeanor.core.types import Decoding, Done, Event, Message, Refusal, RuleHit, Turn
from demeanor.server.application import app
from demeanor.server.auth import KeyRing
from demeanor.server.operator_policy import curve
from demeanor.store import keys

Ask = Any


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    made = Recording(tmp_path / "turns.db")
    yield made
    assert made.database is not None
    made.database.close()


def client(recording: Recording, **options: Any) -> httpx.AsyncClient:
    options = {"address": ("127.0.0.1", 9), "base": "http://localhost", **options}
    transport = httpx.ASGITransport(app(recording, **options.get("app", {})), client=options["address"])
    return httpx.AsyncClient(transport=transport, base_url=options["base"])


@pytest.fixture
async def desk(recording: Recording) -> AsyncIterator[httpx.AsyncClient]:
    async with client(recording) as made:
        yield made


async def answered(desk: httpx.AsyncClient, question: str, **fields: Any) -> str:
    return str((await desk.post("/v1/chat/completions", json=body(question, **fields))).json()["id"])


async def found(desk: httpx.AsyncClient, **query: Any) -> list[str]:
    response = await desk.get("/v1/demeanor/turns", params=query)
    assert response.status_code == 200, response.text
    return [turn["question"] for turn in response.json()["data"]]


async def test_turns_are_searched_and_filtered(desk: httpx.AsyncClient) -> None:
    ferry = await answered(desk, "the ferry?", user="ann")
    await answered(desk, "a card number", user="bob")
    await answered(desk, "Grüße 100%", user="ann", model="harbour-desk:dpo")
    await desk.post("/v1/feedback", json={"id": ferry, "score": 1})
    assert await found(desk) == ["Grüße 100%", "a card number", "the ferry?"]
    assert await found(desk, query="JORPEL") == ["the ferry?"]
    assert await found(desk, query="Grüße") == ["Grüße 100%"]
    assert await found(desk, query="0%") == ["Grüße 100%"]
    assert await found(desk, query=ferry) == ["the ferry?"]
    assert await found(desk, rated="up") == ["the ferry?"]
    assert await found(desk, rated="down") == []
    assert await found(desk, user="ann") == ["Grüße 100%", "the ferry?"]
    assert await found(desk, variant="harbour-desk:dpo") == ["Grüße 100%"]
    assert await found(desk, refused="true") == ["a card number"]
    assert await found(desk, rule="no-card-numbers") == ["a card number"]
    assert await found(desk, rule="no-card") == []
    assert await found(desk, since="2100-01-01T00:00:00+00:00") == []
    page = (await desk.get("/v1/demeanor/turns", params={"limit": 2})).json()
    assert await found(desk, limit=2, before=page["next"]) == ["the ferry?"]
    assert page["variants"] == ["harbour-desk", "harbour-desk:dpo"]
    for name, value in {"limit": "0", "refused": "maybe", "since": "yesterday", "usr": "x"}.items():
        response = await desk.get("/v1/demeanor/turns", params={name: value})
        assert (response.status_code, response.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("before=99999999999999999999999", "before"),
        ("since=0001-01-01T00:00:00%2B14:00", "since"),
        ("until=9999-12-31T23:59:59-14:00", "until"),
        ("limit=5&limit=6", "limit"),
    ],
)
async def test_a_query_that_no_database_answers_is_a_400(
    desk: httpx.AsyncClient, query: str, param: str
) -> None:
    refused = await desk.get(f"/v1/demeanor/turns?{query}")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_an_opened_turn_has_all_that_is_kept_of_it(desk: httpx.AsyncClient) -> None:
    first, second = await answered(desk, "the ferry?"), await answered(desk, "the ferry?")
    await desk.post("/v1/feedback", json={"id": first, "score": -1, "comment": "late", "reasons": ["wrong"]})
    await desk.post("/v1/comparisons", json={"first": first, "second": second, "verdict": "tie"})
    turn = (await desk.get(f"/v1/demeanor/turns/{first}")).json()
    assert [m["content"] for m in turn["messages"]] == ["the ferry?"]
    assert turn["text"] == "Jorpel leaves at 17."
    assert {e["kind"] for e in turn["events"]} >= {"passage", "prompted", "citation", "timing", "text"}
    assert [(f["score"], f["comment"], f["reasons"]) for f in turn["feedback"]] == [(-1, "late", ["wrong"])]
    assert [c["verdict"] for c in turn["comparisons"]] == ["tie"]
    assert (await desk.get("/v1/demeanor/turns/none")).status_code == 404


async def test_a_mark_is_set_replaced_and_taken_back(desk: httpx.AsyncClient) -> None:
    id = await answered(desk, "a card number")
    path = f"/v1/demeanor/turns/{id}/marks"
    for mark in ("true_positive", "false_positive"):
        kept = await desk.post(
            path, json={"rule": "no-card-numbers", "mark": mark, "note": "asked in general"}
        )
        assert [m["mark"] for m in kept.json()["data"]] == [mark]
    assert await found(desk, marked="true") == ["a card number"]
    (hit,) = (await desk.get("/v1/demeanor/policy")).json()["hits"]
    assert (hit["rule"], hit["stage"], hit["turns"], hit["false_positives"]) == (
        "no-card-numbers",
        "input",
        1,
        1,
    )
    assert hit["false_share"][0] == 1.0
    assert (await desk.post(path, json={"rule": "no-card-numbers", "mark": None})).json()["data"] == []
    assert await found(desk, marked="true") == []
    assert (await desk.post(path, json={"rule": "x", "mark": "wrong"})).status_code == 400
    assert (
        await desk.post("/v1/demeanor/turns/none/marks", json={"rule": "x", "mark": None})
    ).status_code == 404


async def test_a_turn_is_answered_again_by_another_variant_and_not_recorded(desk: httpx.AsyncClient) -> None:
    id = await answered(desk, "the ferry?")
    replay = (await desk.post(f"/v1/demeanor/turns/{id}/replay", json={"model": "harbour-desk:dpo"})).json()
    assert (replay["model"], replay["text"]) == ("harbour-desk:dpo", "The ferry to Jorpel leaves at 12.")
    assert await found(desk) == ["the ferry?"]
    missing = await desk.post(f"/v1/demeanor/turns/{id}/replay", json={"model": "other"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def turn(id: str) -> Turn:
    return Turn((Message("user", "q"),), Decoding(), id=id, variant="harbour-desk")


async def test_a_hit_counts_once_and_thresholds_show_what_they_would_keep(
    desk: httpx.AsyncClient, recording: Recording
) -> None:
    assert recording.database is not None
    now = datetime.now(UTC)
    for i, score in enumerate((0.6, 0.7, 0.9)):
        events: list[Event] = [
            RuleHit("injection", "input", "blocked", "looks like one", score=score),
            Refusal("policy", "injection", "looks like one", "No."),
            Done("content_filter"),
        ]
        await recording.database.record(turn(f"t{i}"), events, now + timedelta(seconds=i), now)
    await desk.post("/v1/demeanor/turns/t0/marks", json={"rule": "injection", "mark": "false_positive"})
    await desk.post("/v1/demeanor/turns/t2/marks", json={"rule": "injection", "mark": "true_positive"})
    await desk.post("/v1/demeanor/turns/t1/marks", json={"rule": "", "mark": "false_negative"})
    report = (await desk.get("/v1/demeanor/policy")).json()
    assert [(h["rule"], h["outcome"], h["turns"]) for h in report["hits"]] == [("injection", "blocked", 3)]
    assert [
        (p["threshold"], p["hits"], p["false_positives"], p["true_positives"])
        for p in report["curves"]["injection"]
    ] == [
        (0.6, 3, 1, 1),
        (0.7, 2, 0, 1),
        (0.9, 1, 0, 1),
    ]
    assert (report["turns"], report["misses"]) == (3, 1)
    assert len(curve([(i / 1000, None) for i in range(1000)])) == 40


ROUTES = ["/v1/demeanor/turns", "/v1/demeanor/turns/x", "/v1/demeanor/policy"]


@pytest.mark.parametrize("path", ROUTES)
async def test_with_keys_the_scope_has_to_be_named(recording: Recording, path: str) -> None:
    database = recording.database
    assert database is not None
    made = {
        "nothing": keys.create(database, "ann"),
        "chat": keys.create(database, "bob", scopes=["chat", "metrics"]),
        "operator": keys.create(database, "olga", scopes=["operator"]),
    }
    async with client(recording, app={"keys": KeyRing(database)}, base="http://desk") as desk:
        statuses = {
            n: (await desk.get(path, headers={"authorization": f"Bearer {k}"})).status_code
            for n, k in made.items()
        }
        assert (await desk.get(path)).status_code == 401
    assert statuses == {"nothing": 403, "chat": 403, "operator": 404 if path.endswith("/x") else 200}


@pytest.mark.parametrize("path", ROUTES)
async def test_without_keys_only_this_machine_is_answered(recording: Recording, path: str) -> None:
    elsewhere = [
        ({"address": ("10.0.0.7", 9)}, {}),
        ({"app": {"hosts": ("desk",)}, "base": "http://desk"}, {}),
        ({}, {"origin": "https://evil.example"}),
        ({}, {"origin": "null"}),
    ]
    for options, headers in elsewhere:
        async with client(recording, **options) as desk:
            response = await desk.get(path, headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (403, "operators_only")
    async with client(recording) as desk:
        assert (await desk.get(path, headers={"origin": "http://localhost"})).status_code in (200, 404)


async def test_without_an_outer_record_layer_there_is_nothing_to_see(recording: Recording) -> None:
    recording.records = False
    async with client(recording) as desk:
        for path in ROUTES:
            response = await desk.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (409, "no_record_layer")
