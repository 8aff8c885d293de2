"""A database that another program has locked: told soon, before any work, and it destroys nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from demeanor.core.errors import StoreError
from demeanor.core.types import Decoding, Done, Event, Message, Respond, Text, Turn, Usage
from demeanor.layers import record
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.auth import KeyRing
from demeanor.server.request_context import charged, current_token_budget
from demeanor.store import backends, keys
from demeanor.store.database import Database, locked, open_url
from tests.layers.fake_layers import kit
from tests.server.scripted import Scripted, body


@pytest.fixture
def store(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(backends, "BUSY_S", 0.5)
    with closing(open_url(database_url, root=Path())) as made:
        yield made


def lock(store: Database) -> backends.Connection:
    """Another program's connection that holds the lock, as a backup or another server may."""
    other = store.backend.writing()
    for statement in store.backend.begin:
        other.execute(statement)
    return other


@contextmanager
def held(store: Database) -> Iterator[None]:
    with closing(lock(store)):
        yield


async def test_a_lock_is_found_out_in_time_and_only_while_it_lasts(store: Database) -> None:
    assert await locked([store]) is None
    with held(store):
        began = time.monotonic()
        with pytest.raises(StoreError, match=r": .*locked by another program,? for 0\.1 s"):
            await store.check(0.1)
        assert time.monotonic() - began < 5
        assert "database" in str(await locked([store]))
    assert await locked([store]) is None


async def test_many_checks_of_a_locked_database_leave_nothing_behind(store: Database) -> None:
    with held(store):
        found = await asyncio.gather(*[store.check(0.05) for _ in range(50)], return_exceptions=True)
    assert {type(error) for error in found} == {StoreError}
    await store.check(20)


class Recording(Scripted):
    """Answers through a record layer and a key's budget; what reaches the model is in `turns`."""

    def __init__(self, store: Database) -> None:
        super().__init__()
        self.store, self.lock_while_answering = store, False
        given = kit(open_store=lambda url: store.record, open_check=lambda url: lambda: store.check(0.1))
        self.whole = record.wrap(
            record.Spec(), charged(self.model, lambda turn: 5, current_token_budget), given
        )

    def respond(self, model_id: str) -> Respond:
        return self.whole

    async def model(self, turn: Turn) -> AsyncIterator[Event]:
        self.turns.append(turn)
        yield Text("nine")
        if self.lock_while_answering:
            self.lock = lock(self.store)
        yield Usage(5, 1)
        yield Done("stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_locked_database_is_503_before_decoding_and_later_it_does_not_destroy_an_answer(
    store: Database, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.create(store, "edda", tokens_per_day=100_000)
    assistant = Recording(store)

    async def health() -> str | None:
        return await locked([store])

    transport = httpx.ASGITransport(app(assistant, keys=KeyRing(store), operations=Operations(health=health)))
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:

        async def ask() -> httpx.Response:
            return await client.post("/v1/chat/completions", json=body(stream=stream))

        assert ((await ask()).status_code, (await client.get("/readyz")).status_code) == (200, 200)
        with held(store):
            refused, ready = await ask(), await client.get("/readyz")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
        assert int(refused.headers["retry-after"]) >= 1
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert len(assistant.turns) == 1, "nothing was decoded"

        assistant.lock_while_answering = True
        answer = await ask()
        assistant.lock.close()
        assert answer.status_code == 200
        assert "nine" in answer.text
        assert not stream or "[DONE]" in answer.text
        assert "is not recorded" in caplog.text
        assert "Traceback" not in caplog.text
        assistant.lock_while_answering = False
        assert (await ask()).status_code == 200


async def test_feedback_on_a_locked_database_is_503(store: Database) -> None:
    assistant = Scripted()

    async def give(*given: object) -> bool:
        await store.check(0.1)
        return True

    assistant._opinion = give  # type: ignore[assignment, method-assign]
    await store.record(Turn((Message("user", "a"),), Decoding(), id="t"), [Done("stop")], NOON, NOON)
    transport = httpx.ASGITransport(app(assistant))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        with held(store):
            refused = await client.post("/v1/feedback", json={"id": "t", "score": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_unavailable")
        assert (await client.post("/v1/feedback", json={"id": "t", "score": 1})).status_code == 200


NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
