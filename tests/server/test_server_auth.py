"""Keys at the server: wrong ones, scopes, requests per minute, and a daily budget that nobody can exceed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi.openapi.utils import get_openapi
from scripted import CARDS, Scripted, body

from demeanor.core.errors import RequestError
from demeanor.core.types import Decoding, Done, Event, Message, Respond, Text, Turn, Usage
from demeanor.server.application import app
from demeanor.server.assistant import ServedAssistant
from demeanor.server.auth import KeyRing, duration, from_digests
from demeanor.server.embeddings import charged_vectors
from demeanor.server.request_context import (
    CURRENT_REQUEST,
    RequestContext,
    TokenBudget,
    charged,
    current_token_budget,
)
from demeanor.server.serve import offered
from demeanor.store import keys
from demeanor.store.database import Database
from demeanor.store.keys import digest

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "keys.db", lambda: NOON)
    yield made
    made.close()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Charged(Scripted):
    """A scripted assistant whose model calls are charged: a prompt of 7 tokens, and as many of the answer as were asked for."""

    def respond(self, model_id: str) -> Respond:
        return charged(self.answer, lambda turn: 7, current_token_budget)

    async def answer(self, turn: Turn) -> AsyncIterator[Event]:
        await asyncio.sleep(self.pause_s)
        if "break" in turn.messages[-1].content:
            raise ZeroDivisionError
        yield Text("x")
        used = turn.decoding.max_tokens if "all" in turn.messages[-1].content else 3
        yield Usage(7, used)
        yield Done("stop")


def client_of(database: Database, assistant: Scripted, **options: Any) -> httpx.AsyncClient:
    key_ring = KeyRing(database, from_digests({digest("plain"): "key 1"}))
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app(assistant, keys=key_ring, **options)), base_url="http://elsewhere"
    )


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_missing_wrong_or_revoked_key_is_a_401_and_a_plain_one_still_works(
    database: Database,
) -> None:
    key = keys.create(database, "edda")
    async with client_of(database, Scripted()) as client:
        for headers in ({}, bearer("dm-wrong"), {"authorization": key}):
            refused = await client.post("/v1/chat/completions", json=body(), headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        for good in (key, "plain"):
            for scheme in ("Bearer", "bearer", "BEARER"):  # its case does not matter (RFC 9110, 11.1)
                headers = {"authorization": f"{scheme} {good}"}
                sent = await client.post("/v1/chat/completions", json=body(), headers=headers)
                assert sent.status_code == 200
        keys.revoke(database, "edda")
        assert (await client.get("/v1/models", headers=bearer(key))).status_code == 401


async def test_every_route_of_the_api_needs_a_key_and_each_request_looks_it_up_once(tmp_path: Path) -> None:
    class Counting(Database):
        lookups = 0

        def rows(self, sql: str, *values: Any) -> list[Any]:
            self.lookups += "FROM keys" in sql
            return super().rows(sql, *values)

    database = Counting(tmp_path / "keys.db", lambda: NOON)
    made = app(Scripted(), keys=KeyRing(database, from_digests({digest("plain"): "key 1"})))
    key, open_paths = keys.create(database, "edda"), {"/", "/healthz", "/readyz", "/openapi.json"}
    transport = httpx.ASGITransport(made)
    async with httpx.AsyncClient(transport=transport, base_url="http://elsewhere") as client:
        for path, methods in get_openapi(title="", version="", routes=made.routes)["paths"].items():
            for method in methods:
                refused = (await client.request(method, path)).status_code == 401
                assert refused is not (path in open_paths or path.startswith("/static/")), (method, path)
        for headers in (bearer(key), bearer("plain"), bearer("wrong")):
            database.lookups = 0
            await client.post("/v1/chat/completions", json=body(), headers=headers)
            assert database.lookups == 1
    database.close()


async def test_a_key_does_what_its_scopes_say_and_no_more(database: Database) -> None:
    key = keys.create(database, "edda", scopes=["models"])
    async with client_of(database, assistant := Scripted()) as client:
        assert (await client.get("/v1/models", headers=bearer(key))).status_code == 200
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"):
            refused = await client.post(path, json=body(), headers=bearer(key))
            assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
            assert "models" in refused.json()["error"]["message"]
    assert assistant.turns == []


PLACES = {
    "chat": "/v1/chat/completions",
    "embeddings": "/v1/embeddings",
    "feedback": "/v1/feedback",
    "metrics": "/metrics",
    "models": "/v1/models",
    "moderations": "/v1/moderations",
    "operator": "/v1/demeanor/traffic",
}


@pytest.mark.parametrize("scope", keys.SCOPES)
async def test_every_scope_opens_its_own_address_and_no_other(database: Database, scope: str) -> None:
    key = keys.create(database, "edda", scopes=[scope])
    async with client_of(database, Scripted()) as client:
        found = {
            of: (
                await client.request(
                    "GET" if of in ("metrics", "models", "operator") else "POST", path, headers=bearer(key)
                )
            )
            for of, path in PLACES.items()
        }
    assert {of for of, answer in found.items() if answer.status_code != 403} == {scope}


VARIANTS = [card.id for card in CARDS]
ASKED = ("harbour-desk:sft+prompt", "harbour-desk:nothing", *VARIANTS)


@pytest.mark.parametrize(
    ("publishes", "models", "answered"),
    [
        ([], (), {"harbour-desk"}),
        (["harbour-desk:dpo"], (), {"harbour-desk", "harbour-desk:dpo"}),
        ([], ("harbour-desk-policy", "another-stack"), {"harbour-desk", "harbour-desk-policy"}),
        (VARIANTS, ("harbour-desk:sft+prompt",), {*VARIANTS, "harbour-desk:sft+prompt"}),
    ],
)
async def test_with_keys_only_published_variants_are_listed_and_answered_at_every_address(
    database: Database, publishes: list[str], models: tuple[str, ...], answered: set[str]
) -> None:
    key = keys.create(database, "edda", models=models)
    assistant = Scripted()
    assistant.publishes = publishes
    found: dict[str, set[bool]] = {}
    async with client_of(database, assistant) as client:
        listed = (await client.get("/v1/models", headers=bearer(key))).json()["data"]
        for model in ASKED:
            asks = {
                "/v1/chat/completions": body(model=model),
                "/v1/completions": {"model": model, "prompt": "a"},
                "/v1/responses": {"model": model, "input": "a", "store": False},
                "/v1/embeddings": {"model": model, "input": "a"},
                "/v1/moderations": {"model": model, "input": "a"},
            }
            answers = [await client.post(p, json=sent, headers=bearer(key)) for p, sent in asks.items()]
            answers.append(await client.get(f"/v1/models/{model}", headers=bearer(key)))
            errors = [a.json().get("error") or {} for a in answers]
            found[model] = {error.get("code") == "model_not_found" for error in errors}
            told = " ".join(
                str(error.get("message")) for error in errors if error.get("code") == "model_not_found"
            )
            assert not [v for v in VARIANTS if v not in answered and v != model and f" {v}," in told]
    assert {card["id"] for card in listed} == answered
    assert found == {model: {model not in answered} for model in ASKED}
    assert {turn.variant for turn in assistant.turns} == answered


async def test_without_keys_every_variant_is_answered() -> None:
    transport = httpx.ASGITransport(app(Scripted()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        asked = [await client.post("/v1/chat/completions", json=body(model=model)) for model in VARIANTS]
    assert [a.status_code for a in asked] == [200] * len(VARIANTS)


def test_serve_says_what_is_offered() -> None:
    assistant = Scripted()
    assert offered(assistant, with_keys=False).startswith("all variants")
    assert offered(assistant, with_keys=True).startswith("the whole stack alone")
    assistant.publishes = ["harbour-desk:dpo"]
    assert offered(assistant, with_keys=True).endswith("variants harbour-desk:dpo")


async def test_the_owner_of_the_key_is_the_user_whatever_the_request_says(database: Database) -> None:
    key = keys.create(database, "edda")
    async with client_of(database, assistant := Scripted()) as client:
        await client.post("/v1/chat/completions", json=body(user="odin"), headers=bearer(key))
    assert assistant.turns[0].user == "edda"


async def test_requests_per_minute_are_those_of_the_last_60_seconds(database: Database) -> None:
    key, clock = keys.create(database, "edda", requests_per_minute=2), Clock()
    async with client_of(database, Scripted(), clock=clock) as client:

        async def ask() -> httpx.Response:
            return await client.post("/v1/chat/completions", json=body(), headers=bearer(key))

        left = []
        for clock.now in (100.0, 110.0, 159.9, 160.0, 160.1):
            answer = await ask()
            left.append(
                (
                    answer.status_code,
                    answer.headers["x-ratelimit-remaining-requests"],
                    answer.headers["x-ratelimit-reset-requests"],
                )
            )
    assert left == [
        (200, "1", "1m0s"),
        (200, "0", "50s"),
        (429, "0", "1s"),
        (200, "0", "10s"),
        (429, "0", "10s"),
    ]
    assert answer.headers["retry-after"] == "10"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"


async def test_64_callers_on_one_token_budget_take_not_one_token_too_many(database: Database) -> None:
    limit, each = 1000, 7 + 40
    key = keys.create(database, "edda", tokens_per_day=limit)
    assistant = Charged(pause_s=0.01)
    async with client_of(database, assistant) as client:
        asked = [
            client.post("/v1/chat/completions", json=body("all", max_tokens=40), headers=bearer(key))
            for _ in range(64)
        ]
        answers = await asyncio.gather(*asked)
    statuses = [a.status_code for a in answers]
    used = sum(a.json()["usage"]["total_tokens"] for a in answers if a.status_code == 200)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) == limit // each == 21
    assert used == 21 * each <= limit
    assert keys.spent(database, digest(key), "2026-11-23") == used


async def test_what_was_reserved_and_not_used_is_given_back(database: Database) -> None:
    key = keys.create(database, "edda", tokens_per_day=100)
    async with client_of(database, Charged()) as client:

        async def ask(text: str, most: int) -> httpx.Response:
            return await client.post(
                "/v1/chat/completions", json=body(text, max_tokens=most), headers=bearer(key)
            )

        answer = await ask("few", 50)
        assert keys.spent(database, digest(key), "2026-11-23") == 7 + 3
        assert answer.headers["x-ratelimit-limit-tokens"] == "100"
        assert answer.headers["x-ratelimit-remaining-tokens"] == "90"
        assert answer.headers["x-ratelimit-reset-tokens"] == "12h0m0s"
        assert (await ask("break", 50)).status_code == 500
        assert keys.spent(database, digest(key), "2026-11-23") == 10, (
            "a call that failed before its first event is free"
        )
        assert ((await ask("few", 94)).status_code, (await ask("few", 84)).status_code) == (400, 429), (
            "101 is never; 91 is not today"
        )
        assert (await ask("all", 83)).status_code == 200
        empty = await ask("few", 1)
    assert (
        empty.status_code,
        empty.headers["retry-after"],
        empty.headers["x-ratelimit-remaining-tokens"],
    ) == (429, "43200", "0")


async def test_a_prompt_that_was_estimated_too_small_is_charged_as_it_was(database: Database) -> None:
    key = keys.create(database, "edda", tokens_per_day=100)
    budget = TokenBudget(database, digest(key), 100)
    reserve = charged(Charged().answer, lambda turn: 2, lambda: budget)  # 2 + 3 are reserved, 7 + 3 are used
    assert [e async for e in reserve(Turn((Message("user", "hi"),), Decoding(max_tokens=3)))]
    assert budget.left() == 100 - 10


async def test_a_call_broken_off_is_charged_in_full(database: Database) -> None:
    key = keys.create(database, "edda", tokens_per_day=100)
    budget = TokenBudget(database, digest(key), 100)
    events = charged(Charged().answer, lambda turn: 7, lambda: budget)(
        Turn((Message("user", "hi"),), Decoding(max_tokens=50))
    )
    assert isinstance(await anext(events), Text)
    await events.aclose()  # type: ignore[attr-defined]
    assert budget.left() == 100 - 57


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1s"), (59.0, "59s"), (60.0, "1m0s"), (3599.5, "1h0m0s"), (43201.0, "12h0m1s")],
)
def test_durations_read_as_openai_writes_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


async def test_texts_to_embed_are_charged_by_their_tokens_and_free_if_they_fail(database: Database) -> None:
    key = keys.create(database, "edda", tokens_per_day=10)
    request = RequestContext("req_1", "req_1", token_budget=TokenBudget(database, digest(key), 10))

    class Embedding(Scripted):
        async def embed(self, model_id: str, texts: list[tuple[int, ...]]) -> list[list[float]]:
            if texts == [(9,)]:
                raise ZeroDivisionError
            return [[1.0]] * len(texts)

    assistant, card = cast(ServedAssistant, Embedding()), CARDS[0]
    token = CURRENT_REQUEST.set(request)
    try:
        assert await charged_vectors(assistant, card, [(1, 2), (3, 4, 5)]) == [[1.0], [1.0]]
        with pytest.raises(ZeroDivisionError):
            await charged_vectors(assistant, card, [(9,)])
        with pytest.raises(RequestError, match="5 of 10 tokens left"):
            await charged_vectors(assistant, card, [(1,) * 6])
    finally:
        CURRENT_REQUEST.reset(token)
    assert (request.prompt_tokens, request.turns, request.load.turns) == (5, 1, 0)
    assert keys.spent(database, digest(key), "2026-11-23") == 5


async def test_a_key_without_tokens_left_can_still_ask_what_costs_none(database: Database) -> None:
    key = keys.create(database, "edda", tokens_per_day=10)
    assert await keys.take(database, digest(key), "2026-11-23", 10, 10)
    async with client_of(database, Scripted()) as client:
        asked = await client.post("/v1/chat/completions", json=body(), headers=bearer(key))
        listed = await client.get("/v1/models", headers=bearer(key))
    assert (asked.status_code, listed.status_code) == (429, 200)
