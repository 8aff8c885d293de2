"""The schema: every earlier one becomes the present one with its rows; a foreign or a newer one is left alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from demeanor.core.errors import DemeanorError
from demeanor.core.types import Decoding, Done, Text, Turn
from demeanor.store import keys
from demeanor.store.backends import backend_of, postgres_sql
from demeanor.store.database import open_url, turn_json
from demeanor.store.migrations import MIGRATIONS
from tests.conftest import each

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
HERE = Path()


def old_database(url: str, version: int) -> None:
    """Make a database of an earlier schema with a turn, feedback and a key in it."""
    backend = backend_of(url, HERE)
    at = NOON.isoformat()
    with closing(backend.writing()) as connection:
        connection.execute("BEGIN")
        for statement in (s for migration in MIGRATIONS[:version] for s in migration):
            connection.execute(statement)
        backend.set_schema_version(connection, version)
        connection.execute(
            "INSERT INTO turns (id, started, finished, user, variant, stack_key, turn, answer, finish_reason,"
            " prompt_tokens, completion_tokens) VALUES ('t-1', ?, ?, 'edda', 'desk', 'k', ?, 'It leaves.', 'stop', 3, 4)",
            (at, at, turn_json(Turn((), Decoding(), id="t-1", user="edda"))),
        )
        connection.execute("INSERT INTO events VALUES (1, 0, 'Done', '', '{\"finish_reason\": \"stop\"}')")
        connection.execute(
            "INSERT INTO feedback (turn, created, user, value, comment) VALUES (1, ?, 'edda', 1, '100% ?')",
            (at,),
        )
        connection.execute(
            "INSERT INTO keys (digest, name, created) VALUES (?, 'edda', ?)", (keys.digest("dm-old"), at)
        )
        connection.execute("COMMIT")


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS) + 1))
def test_every_earlier_schema_becomes_the_present_one_and_keeps_its_rows(
    version: int, database_url: str
) -> None:
    old_database(database_url, version)
    with closing(open_url(database_url, root=HERE)) as database:
        found = database.turn("t-1")
        assert found is not None
        assert (found.started, found.completion.finish_reason) == (NOON, "stop")
        assert [(f.turn_id, f.user, f.value, f.comment) for f in database.feedback()] == [
            ("t-1", "edda", 1.0, "100% ?")
        ]
        assert keys.find(database, "dm-old") == keys.Key(keys.digest("dm-old"), "edda", "", NOON)
        new = Turn((), Decoding(), id="t-2", user="odin")
        asyncio.run(recorded(database, new))
        assert [s.turn.id for s in database.turns()] == ["t-2", "t-1"]


async def recorded(database, turn: Turn) -> None:  # type: ignore[no-untyped-def]
    await database.record(turn, [Text("x"), Done("stop")], NOON, NOON)


def test_a_schema_is_applied_once_and_a_newer_one_is_refused(database_url: str) -> None:
    for _ in range(2):
        open_url(database_url, root=HERE).close()
    backend = backend_of(database_url, HERE)
    with closing(backend.writing()) as connection:
        assert backend.schema_version(connection) == len(MIGRATIONS)
        backend.set_schema_version(connection, 999)
    with pytest.raises(DemeanorError, match=r"the database has schema 999; .* Upgrade demeanor"):
        open_url(database_url, root=HERE)


def test_tables_that_are_not_ours_are_left_alone(database_url: str) -> None:
    backend = backend_of(database_url, HERE)
    if path := getattr(backend, "path", None):
        path.parent.mkdir()
    with closing(backend.writing()) as connection:
        connection.execute("CREATE TABLE invoices (x INTEGER)")
    with pytest.raises(DemeanorError, match=r"tables that are not ours: invoices\. Name another"):
        open_url(database_url, root=HERE)
    with closing(backend.writing()) as connection:
        assert backend.tables(connection) == ["invoices"]


OPENER = """
import sys
from pathlib import Path
from demeanor.store.database import open_url, turn_json

sys.stdin.readline()
database = open_url(sys.argv[1], root=Path())
print(len(database.turns()))
database.close()
"""


def test_processes_that_migrate_at_once_leave_one_schema(database_url: str) -> None:
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in openers:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    assert [process.communicate(timeout=120)[0] for process in each(openers)] == ["0\n"] * 3
    backend = backend_of(database_url, HERE)
    with closing(backend.reading()) as connection:
        assert backend.schema_version(connection) == len(MIGRATIONS)


@pytest.mark.parametrize(
    ("portable", "translated"),
    [
        ("SELECT user, turns.user FROM turns WHERE id = ?", 'SELECT "user", turns."user" FROM turns WHERE id = %s'),
        ("SELECT '?', '100%', 'user', \"user\" LIKE ?", "SELECT '?', '100%%', 'user', \"user\" LIKE %s"),
        ("SELECT 'it''s ?' || user_name", "SELECT 'it''s ?' || user_name"),
        (
            "CREATE TABLE a (row INTEGER PRIMARY KEY, b INTEGER, c REAL, d BLOB) WITHOUT ROWID",
            "CREATE TABLE a (row BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, b BIGINT, c DOUBLE PRECISION, d BYTEA)",
        ),
        ("ALTER TABLE a ADD COLUMN user TEXT", 'ALTER TABLE a ADD COLUMN "user" TEXT COLLATE "C"'),
    ],
)  # fmt: skip
def test_statements_are_translated_for_postgresql(portable: str, translated: str) -> None:
    assert postgres_sql(portable) == translated
