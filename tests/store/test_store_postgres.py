"""PostgreSQL alone: a lost connection, a server that is away, passwords that are never shown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from demeanor.core.addresses import filled, shown
from demeanor.core.errors import DemeanorError, StoreError, UsageError
from demeanor.core.registry import parse
from demeanor.core.types import Decoding, Done, Turn
from demeanor.layers import record
from demeanor.store.backends import backend_of
from demeanor.store.database import Database, open_url
from tests.conftest import each
from tests.servers import new_schema

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECRET = "hunter2/@:%&?x"


@pytest.fixture
def url(postgres: str) -> str:
    return new_schema(postgres)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with closing(open_url(url, root=Path())) as made:
        yield made


async def stored(database: Database, id: str) -> None:
    await database.record(Turn((), Decoding(), id=id), [Done("stop")], NOON, NOON)


END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'demeanor' AND pid <> pg_backend_pid()"
)


def end_connections(url: str) -> None:
    """End the connections of all servers to a database, as a restart of PostgreSQL does."""
    with closing(backend_of(url, Path()).writing()) as other:
        other.execute(END)


async def test_connections_that_the_server_ended_are_opened_again(database: Database, url: str) -> None:
    await stored(database, "t1")
    assert database.turn("t1") is not None
    end_connections(url)
    assert database.turn("t1") is not None
    await stored(database, "t2")
    assert [s.turn.id for s in database.turns()] == ["t2", "t1"]


async def test_a_connection_lost_within_a_write_fails_that_write_and_no_other(
    database: Database, url: str
) -> None:
    def lose(connection) -> None:  # type: ignore[no-untyped-def]
        end_connections(url)
        connection.execute("SELECT 1")

    with pytest.raises(StoreError, match="the database cannot write"):
        await database.queue(lose)
    await stored(database, "t1")
    assert database.turn("t1") is not None


async def test_a_database_that_takes_no_connections_is_told_within_a_second_and_found_again(
    postgres: str, url: str
) -> None:
    name = f"d_{time.time_ns()}"
    with closing(backend_of(url, Path()).writing()) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        own = postgres.replace("/postgres?", f"/{name}?")
        with closing(open_url(own, root=Path())) as database:
            await stored(database, "t1")
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            admin.execute(END)
            began = time.monotonic()
            with pytest.raises(StoreError, match=name):
                await database.check(20)
            with pytest.raises(StoreError, match="cannot be read"):
                database.turn("t1")
            assert time.monotonic() - began < 10, "the machine may be busy"
            admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            await until_writable(database)
            assert database.turn("t1") is not None
        admin.execute(f"DROP DATABASE {name}")


async def until_writable(database: Database) -> None:
    for _ in range(200):
        try:
            return await database.check(20)
        except StoreError:
            await asyncio.sleep(0.05)
    raise AssertionError("never writable again")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (f"postgresql://u:{quote(SECRET, safe='')}@127.0.0.1:1/d", "refused"),
        (f"postgresql://u:{SECRET}@127.0.0.1:1/d", "percent-encoded|refused|resolve|directory"),
        (f"postgresql://u:{quote(SECRET, safe='')}@127.0.0.1:port/d", "port"),
        (f"postgresql://127.0.0.1:1/d?user=u&password={quote(SECRET, safe='')}", "refused"),
        (f"mysql://u:{SECRET}@h/d", "wanted sqlite:///PATH or postgresql://"),
    ],
)
def test_a_server_that_is_away_or_an_address_that_is_wrong_never_shows_the_password(
    url: str, said: str
) -> None:
    with pytest.raises(DemeanorError, match=said) as caught:
        open_url(url, root=Path())
    assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_password_in_a_stack_file_is_refused_without_showing_it_and_a_variable_is_not() -> None:
    for url in each([f"postgresql://u:{SECRET}@h/d", "postgresql://h/d?password=hunter2"]):
        spec, problems = parse(record.Spec, {"database": url}, "layers[0]")
        assert spec is None
        assert [str(p) for p in problems if "${NAME}" in str(p) and "hunter2" not in str(p)]
    given = "postgresql://u:${DESK_PASSWORD}@h/d"
    spec, _ = parse(record.Spec, {"database": given}, "layers[0]")
    assert spec is not None
    assert spec.database == given
    for wrong in each(["mysql://u:hunter2@h/d", "sqlite:///", "postgresql://", "${}"]):
        spec, problems = parse(record.Spec, {"database": wrong}, "layers[0]")
        assert spec is None
        assert "wanted sqlite:///PATH or postgresql://" in str(problems[0])
        assert "hunter2" not in str(problems[0])


def test_variables_are_filled_in_and_encoded_and_a_missing_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DESK_PASSWORD", SECRET)
    monkeypatch.setenv("DESK_URL", "postgresql://u:p@h/d")
    assert filled("postgresql://u:${DESK_PASSWORD}@h/d") == f"postgresql://u:{quote(SECRET, safe='')}@h/d"
    assert filled("${DESK_URL}") == "postgresql://u:p@h/d"
    monkeypatch.delenv("DESK_URL")
    with pytest.raises(
        UsageError, match=r"database: got '\$\{DESK_URL\}': the environment variable DESK_URL"
    ):
        open_url("${DESK_URL}", root=Path())


@pytest.mark.parametrize(
    ("address", "printed"),
    [
        ("postgresql://u:pw@h:5/d", "postgresql://u:***@h:5/d"),
        ("postgresql://u:p@w/x@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u@h/d?password=pw&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("postgresql://u:${NAME}@h/d", "postgresql://u:${NAME}@h/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("sqlite:///runs/a.db", "sqlite:///runs/a.db"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, printed: str) -> None:
    assert shown(address) == printed
