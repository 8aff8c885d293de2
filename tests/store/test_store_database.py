"""The database: what was acknowledged stays, what was stored comes back, and no text is ever SQL."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DemeanorError, StoreError, UsageError
from demeanor.core.types import (
    Citation,
    Decoding,
    Done,
    Event,
    Message,
    Passage,
    Prompted,
    Refusal,
    Text,
    Timing,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    ToolResult,
    ToolSpec,
    Trust,
    Turn,
    Usage,
)
from demeanor.store.backends import Connection, backend_of
from demeanor.store.database import Database, open_url
from demeanor.store.writer import Writer
from tests.conftest import each

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
EVENTS: list[Event] = [
    Prompted((Message("system", "Be brief.", trust=Trust.SYSTEM),)),
    Passage("a#1", "Corkel 9.", 1.5, "a"),
    Text("It ", logprobs=(TokenLogprob("It ", -0.1, (("At", -2.0),)),)),
    Text("leaves."),
    ToolCalled(ToolCall("1", "calculator", '{"expression": "1"}')),
    ToolResult("1", "calculator", "1", error=True),
    Citation(0, 2, "a#1"),
    Refusal("policy", "cards", "why", "No.", "output"),
    Timing("weights", 1.25),
    Usage(7, 3),
    Done("content_filter", by="policy"),
]
TURN = Turn(
    (Message("user", "When?"), Message("assistant", "", tool_calls=(ToolCall("9", "mail", "{}"),))),
    Decoding(seed=7, stop=("x",)),
    tools=(ToolSpec("mail", "Sends.", {"type": "object", "properties": {}}),),
    id="t-1",
    user="edda",
    variant="desk:dpo",
    stack_key="abc",
    metadata={"a": "b"},
)


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    database = open_url(database_url, root=tmp_path, now=lambda: NOON)
    yield database
    database.close()


async def test_a_turn_comes_back_as_it_was_and_can_be_replayed(database: Database) -> None:
    await database.record(TURN, EVENTS, NOON, NOON + timedelta(seconds=1))
    found = database.turn("t-1")
    assert found is not None
    assert found.turn == TURN
    assert found.events == (*EVENTS[:2], Text("It leaves.", logprobs=EVENTS[2].logprobs), *EVENTS[4:])  # type: ignore[union-attr]
    assert (found.started, found.finished, found.finish_reason) == (
        NOON,
        NOON + timedelta(seconds=1),
        "content_filter",
    )
    assert found.completion.refusal == EVENTS[7]
    assert database.turn("t-2") is None


async def test_turns_are_listed_newest_first_by_user(database: Database) -> None:
    for i in range(6):
        await database.record(
            Turn(TURN.messages, TURN.decoding, id=f"t{i}", user="edda" if i % 2 else "odin"),
            [Text("x"), Done("stop")],
            NOON,
            NOON,
        )
    assert [s.turn.id for s in database.turns(limit=2)] == ["t5", "t4"]
    assert [s.turn.id for s in database.turns(user="edda")] == ["t5", "t3", "t1"]
    assert [s.turn.id for s in database.turns(user="edda", limit=1, skip=1)] == ["t3"]


async def test_a_turn_that_broke_off_has_no_finish_reason(database: Database) -> None:
    await database.record(TURN, [Text("It lea")], NOON, NOON)
    found = database.turn("t-1")
    assert found is not None
    assert (found.finish_reason, found.completion.text) == (None, "It lea")


async def test_many_writers_at_once_are_all_stored_and_seen_when_acknowledged(database: Database) -> None:
    async def one(i: int) -> bool:
        await database.record(Turn((), Decoding(), id=f"t{i}"), [Text(str(i)), Done("stop")], NOON, NOON)
        found = database.turn(f"t{i}")
        return found is not None and found.completion.text == str(i)

    assert all(await asyncio.gather(*(one(i) for i in range(300))))
    assert len(database.turns(limit=1000)) == 300


WRITER = """
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from demeanor.store.database import open_url
from demeanor.core.types import Decoding, Done, Text, Turn

async def main():
    database, now = open_url(sys.argv[1], root=Path()), datetime.now(UTC)
    async def forever(name):
        for i in range(10 ** 9):
            await database.record(Turn((), Decoding(), id=f"{name}-{i}"), [Text("x" * 200), Done("stop")], now, now)
            sys.stdout.write(f"{name}-{i}\\n"); sys.stdout.flush()
    await asyncio.gather(*(forever(name) for name in "abcdefgh"))

asyncio.run(main())
"""


def test_kill_9_loses_no_acknowledged_record(database_url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, database_url], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(150)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split("\n")[:-1]
    process.wait()
    process.stdout.close()
    database = open_url(database_url, root=Path())
    stored = {s.turn.id for s in database.turns(limit=1_000_000)}
    database.close()
    assert len(acknowledged) >= 150
    assert set(acknowledged) <= stored


def test_a_job_that_fails_is_rolled_back_alone(database_url: str) -> None:
    gate = threading.Event()
    backend = backend_of(database_url, Path())

    def insert(x: int, then: Exception | None = None):  # type: ignore[no-untyped-def]
        def job(connection: Connection) -> int:
            connection.execute("INSERT INTO t VALUES (?)", (x,))
            if then is not None:
                raise then
            return x

        return job

    writer = Writer(backend)
    writer.submit(lambda c: c.execute("CREATE TABLE t (x INTEGER UNIQUE)")).result(20)
    writer.submit(lambda c: gate.wait(120))  # so that the next four share a transaction
    first, bad, twice, last = (
        writer.submit(insert(1)),
        writer.submit(insert(2, KeyError("x"))),
        writer.submit(insert(1)),
        writer.submit(insert(3)),
    )
    gate.set()
    assert (first.result(20), last.result(20)) == (1, 3)
    with pytest.raises(KeyError):
        bad.result(20)
    with pytest.raises(StoreError, match=r"(?i)cannot write: .*UNIQUE"):
        twice.result(20)
    writer.close()
    writer.close()
    with closing(backend.reading()) as connection:
        assert [tuple(row) for row in connection.execute("SELECT x FROM t ORDER BY x")] == [(1,), (3,)]
    with pytest.raises(DemeanorError, match="closed"):
        writer.submit(insert(4))


async def test_close_writes_what_is_queued(database_url: str) -> None:
    database = open_url(database_url, root=Path())
    waiting = [
        database.record(Turn((), Decoding(), id=f"t{i}"), [Done("stop")], NOON, NOON) for i in range(50)
    ]
    database.close()
    await asyncio.gather(*waiting)
    again = open_url(database_url, root=Path())
    assert len(again.turns(limit=100)) == 50
    again.close()


HOSTILE = [
    "'; DROP TABLE turns; --",
    '" OR 1=1',
    "\x00",
    "\ud800",
    "%",
    "?",
    "\U0001f600",
    "a" * 10_000,
    "NULL",
    "${x}",
    "\u202e",
]


@given(st.text() | st.sampled_from(HOSTILE))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_stored_and_never_sql(database: Database, text: str) -> None:
    before = len(database.turns(limit=10_000))
    turn = Turn(
        (Message("user", text),), Decoding(), id=f"id {text}", user=text, variant=text, metadata={"k": text}
    )

    async def write() -> None:
        await database.record(turn, [Text(text), Refusal(text, text, text, text), Done("stop")], NOON, NOON)

    asyncio.run(write())
    database.add_feedback(f"id {text}", 1.0, comment=text, user=text)
    found = database.turn(f"id {text}")
    assert found is not None
    assert found.turn == turn
    assert found.events[0] == Text(text)
    assert len(database.turns(limit=10_000)) == before + 1


def test_feedback_belongs_to_a_turn_and_has_a_range(database: Database) -> None:
    async def write() -> None:
        await database.record(TURN, [Done("stop")], NOON, NOON)

    asyncio.run(write())
    database.add_feedback("t-1", -1.0, "wrong port", user="odin")
    database.add_feedback("t-1", 0.5)
    assert [(f.turn_id, f.value, f.comment, f.user, f.created) for f in database.feedback("t-1")] == [
        ("t-1", -1.0, "wrong port", "odin", NOON),
        ("t-1", 0.5, "", "anonymous", NOON),
    ]
    assert len(database.feedback()) == 2
    assert database.feedback("t-2") == []
    with pytest.raises(DemeanorError, match="no recorded turn has the id 't-2'"):
        database.add_feedback("t-2", 1.0)
    for value in (1.5, -1.5, float("nan")):
        with pytest.raises(DemeanorError, match="from -1"):
            database.add_feedback("t-1", value)


def test_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    with closing(Database(tmp_path / "of" / "turns.db")):
        for path in each((tmp_path / "of").iterdir()):
            assert os.stat(path).st_mode & 0o077 == 0, path


@pytest.mark.parametrize("how", ["not a database", "somebody else's", "a folder"])
def test_a_file_that_is_not_ours_is_left_alone(how: str, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    if how == "not a database":
        path.write_text("hello " * 200)
    elif how == "a folder":
        path.mkdir()
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE invoices (x)")
    with pytest.raises(DemeanorError, match=r"a\.db"):
        Database(path)


@pytest.mark.parametrize("url", ["mysql://x", "sqlite://", "sqlite:///", "a.db", "postgresql:/x"])
def test_an_url_of_no_known_kind_says_what_is_wanted(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wanted sqlite:///PATH or postgresql://"):
        open_url(url, root=tmp_path)
