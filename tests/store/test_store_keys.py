"""API keys: kept as digests, ended by revoking, and never able to take more tokens than their day has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from demeanor.core.errors import DemeanorError
from demeanor.server.costs import NANO
from demeanor.store import keys
from demeanor.store.database import Database, open_url

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    made = open_url(database_url, root=tmp_path, now=lambda: NOON)
    yield made
    made.close()


def test_a_key_is_found_by_its_text_and_nothing_else(database: Database) -> None:
    key = keys.create(database, "edda", scopes=["models", "chat"], requests_per_minute=7, tokens_per_day=1000)
    other = keys.create(database, "odin")
    found = keys.find(database, key)
    assert found == keys.Key(keys.digest(key), "edda", key[:10], NOON, None, ("chat", "models"), 7, 1000)
    assert [
        keys.find(database, text) for text in (key + "x", key[:-1], found.digest, found.prefix, "", "\ud800")
    ] == [None] * 6
    assert keys.find(database, other) == keys.Key(keys.digest(other), "odin", other[:10], NOON)
    assert len(key) >= 43, "256 bits are 43 characters of base64"


def test_only_the_digest_reaches_the_disk(tmp_path: Path) -> None:
    database = Database(tmp_path / "of" / "keys.db")
    key = keys.create(database, "edda")
    database.close()
    everything = b"".join(p.read_bytes() for p in (tmp_path / "of").iterdir())
    assert keys.digest(key).encode() in everything
    assert key.encode() not in everything
    assert key[12:].encode() not in everything


def test_revoking_ends_all_keys_of_a_name_or_the_one_with_a_prefix_and_keeps_them_listed(
    database: Database,
) -> None:
    first, second, other = (keys.create(database, name) for name in ("edda", "edda", "odin"))
    assert [k.prefix for k in keys.revoke(database, first[:10])] == [first[:10]]
    assert (keys.find(database, first), keys.find(database, second) is not None) == (None, True)
    assert [k.digest for k in keys.revoke(database, "edda")] == [keys.digest(second)]
    assert keys.revoke(database, "edda") == []
    assert keys.find(database, other) is not None
    assert sorted((k.name, k.revoked) for k in keys.stored(database) if k.revoked) == [
        ("edda", NOON),
        ("edda", NOON),
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": " "}, "1 to 128"),
        ({"name": "a\nb"}, "1 to 128"),
        ({"scopes": ["chta"]}, "Did you mean 'chat'"),
        ({"scopes": []}, "got none"),
        ({"requests_per_minute": 0}, "requests_per_minute: got 0"),
        ({"tokens_per_day": -1}, "tokens_per_day: got -1"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(options: dict, said: str, database: Database) -> None:
    with pytest.raises(DemeanorError, match=said):
        keys.create(database, **{"name": "edda"} | options)
    assert keys.stored(database) == []


async def test_sixty_four_callers_at_once_never_take_more_than_the_day_has(database: Database) -> None:
    digest = keys.digest(keys.create(database, "edda", tokens_per_day=100))
    second = Database(database.backend)  # another process, as far as the database is concerned
    got = await asyncio.gather(
        *(keys.take((database, second)[i % 2], digest, "2026-11-23", 7, 100) for i in range(64))
    )
    second.close()
    assert sum(got) == 14  # 14 * 7 = 98; a 15th would be 105
    assert keys.spent(database, digest, "2026-11-23") == 98


async def test_what_is_given_back_can_be_taken_again_and_each_day_begins_at_nothing(
    database: Database,
) -> None:
    digest = keys.digest(keys.create(database, "edda", tokens_per_day=10))
    assert await keys.take(database, digest, "2026-11-23", 10, 10)
    assert not await keys.take(database, digest, "2026-11-23", 1, 10)
    await keys.give_back(database, digest, "2026-11-23", 4)
    assert not await keys.take(database, digest, "2026-11-23", 5, 10)
    assert await keys.take(database, digest, "2026-11-23", 4, 10)
    assert await keys.take(database, digest, "2026-11-24", 9, 10)
    assert [keys.spent(database, digest, f"2026-11-{day}") for day in (22, 23, 24)] == [0, 10, 9]


async def test_spending_never_falls_below_nothing(database: Database) -> None:
    digest = keys.digest(keys.create(database, "edda", tokens_per_day=10))
    assert await keys.take(database, digest, "2026-11-23", 3, 10)
    await keys.give_back(database, digest, "2026-11-23", 8)
    assert keys.spent(database, digest, "2026-11-23") == 0
    assert not await keys.take(database, digest, "2026-11-23", 11, 10)
    assert await keys.take(database, digest, "2026-11-23", 10, 10)
    assert keys.spent(database, digest, "2026-11-23") == 10
    await keys.give_back(database, digest, "2026-11-23", -4)  # used beyond the reservation
    assert keys.spent(database, digest, "2026-11-23") == 14


async def test_a_day_takes_its_own_tokens_only(database: Database) -> None:
    digest = keys.digest(keys.create(database, "edda", tokens_per_day=10))
    assert await keys.take(database, digest, "2026-11-22", 2, 10)
    assert await keys.take(database, digest, "2026-11-23", 3, 10)
    assert [keys.spent(database, digest, f"2026-11-{day}") for day in (22, 23)] == [2, 3]


async def test_two_processes_on_one_database_never_take_more_usd_than_a_day_has(database_url: str) -> None:
    """64 callers, each through one of two connections with a writer of its own, as two `serve` have them; then what was not used comes back."""
    desks = [open_url(database_url, root=Path()) for _ in range(2)]
    try:
        limit, price = 1_000_000, 37_000
        key = keys.digest(keys.create(desks[0], "poor", usd_per_day=limit / NANO))
        day = keys.day_of(desks[0].now())
        taken = await asyncio.gather(
            *(keys.take_cost(desks[n % 2], key, day, price, limit) for n in range(64))
        )
        assert sum(taken) == limit // price, "exactly as many as the day pays for"
        assert keys.cost(desks[1], key, day).nano_usd == sum(taken) * price <= limit
        given = await asyncio.gather(
            *(keys.book_cost(desks[n % 2], key, day, -7_000, unpriced=False) for n in range(sum(taken)))
        )
        assert len(given) == sum(taken)
        assert keys.cost(desks[0], key, day).nano_usd == sum(taken) * 30_000
    finally:
        for desk in desks:
            desk.close()
