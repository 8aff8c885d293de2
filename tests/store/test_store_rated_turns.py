"""Search of recorded turns: every filter, words in any script, and no word is ever a pattern."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.types import Decoding, Done, Event, Message, Refusal, Text, Turn
from demeanor.store import rated_turns, routed_complaints
from demeanor.store.database import Database, open_url
from demeanor.store.database import rated_turns as rated_turns_at
from demeanor.store.turn_search import TurnFilter

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
ASKED = ["When to Corkel?", "Où est l'ÉGLISE ?", '100% of_it "quoted" back\\slash', "港 はどこ?", "nothing"]


@pytest.fixture
async def turns(database_url: str) -> Any:
    database = open_url(database_url, root=Path(), now=lambda: NOON)
    for n, text in enumerate(ASKED):
        turn = Turn(
            (Message("user", text),),
            Decoding(),
            id=f"t{n}",
            user=f"u{n % 2}",
            variant=f"desk:{n % 3}",
            stack_key=f"key{n}",
        )
        said: list[Event] = [Text(f"Answer {n}."), Done("stop")]
        if n == 4:
            said = [Refusal("policy", "pirates", "why", "No games."), Done("content_filter")]
        at = NOON + timedelta(hours=n)
        await database.record(turn, said, at, at)
    database.add_feedback("t0", 1.0)
    database.add_feedback("t1", -1.0, "wrong", corrected="There.")
    yield database
    database.close()


def found(database: Database, limit: int | None = None, skip: int = 0, **given: Any) -> list[str]:
    return [
        t.stored.turn.id for t in rated_turns.select(database, TurnFilter(**given), limit=limit, skip=skip)
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ["t4", "t3", "t2", "t1", "t0"]),
        ({"limit": 2, "skip": 1}, ["t3", "t2"]),
        ({"user": "u1"}, ["t3", "t1"]),
        ({"variant": "desk:0"}, ["t3", "t0"]),
        ({"stack_key": "key3"}, ["t3"]),
        ({"stack_key": "key"}, ["t4", "t3", "t2", "t1", "t0"]),
        ({"rule": "pirates"}, ["t4"]),
        ({"rated": "up"}, ["t0"]),
        ({"rated": "down"}, ["t1"]),
        ({"rated": "corrected"}, ["t1"]),
        ({"rated": "any"}, ["t1", "t0"]),
        ({"rated": "none"}, ["t4", "t3", "t2"]),
        ({"since": NOON + timedelta(hours=3)}, ["t4", "t3"]),
        ({"until": NOON + timedelta(hours=1)}, ["t0"]),
        ({"query": "corkel"}, ["t0"]),
        ({"query": "église"}, ["t1"]),
        ({"query": "はどこ"}, ["t3"]),
        ({"query": "100%"}, ["t2"]),
        ({"query": "1%0"}, []),
        ({"query": "of_it"}, ["t2"]),
        ({"query": "ofxit"}, []),
        ({"query": '"quoted"'}, ["t2"]),
        ({"query": "back\\slash"}, ["t2"]),
        ({"query": "answer 2"}, ["t2"]),
        ({"query": "no games"}, ["t4"]),
        ({"query": "'; DROP TABLE turns; --"}, []),
        ({"query": "messages"}, []),  # a name in the JSON is no word of anybody
        ({"query": "corkel", "user": "u1"}, []),
    ],
)
def test_turns_are_found(given: dict[str, Any], wanted: list[str], turns: Database) -> None:
    assert found(turns, **given) == wanted


def test_a_turn_comes_with_what_its_user_said(turns: Database) -> None:
    one = rated_turns.find(turns, "t1")
    assert one is not None
    assert (one.rating, one.corrected, one.complained) == (-1.0, "There.", True)
    liked = rated_turns.find(turns, "t0")
    assert liked is not None
    assert not liked.complained
    assert rated_turns.find(turns, "no such") is None


async def test_more_turns_than_a_page_are_all_found(turns: Database) -> None:
    stored = turns.turn("t0")
    assert stored is not None
    for n in range(rated_turns.PAGE + 10):
        await turns.record(replace(stored.turn, id=f"more{n}"), [Text("x"), Done("stop")], NOON, NOON)
    assert len(found(turns)) == rated_turns.PAGE + 15


async def test_a_label_is_kept_with_its_turn_and_goes_with_it(turns: Database) -> None:
    routed_complaints.save(
        turns, "k1", [("t1", "weights", "", "", {"tried": 3}), ("gone", "policy", "", "", {})]
    )
    routed_complaints.save(turns, "k1", [("t1", "policy", "policy", "rule pirates off", {"tried": 4})])
    (row,) = routed_complaints.routings(turns)
    assert (row.label, row.repair, row.evidence) == ("policy", "rule pirates off", {"tried": 4})
    assert routed_complaints.labels(turns) == {"t1": "policy"}
    await turns.forget("t1")
    assert routed_complaints.routings(turns) == []


async def test_what_diagnose_reads_is_the_same_in_both_databases(turns: Database, database_url: str) -> None:
    found = await asyncio.to_thread(rated_turns_at, database_url)
    assert {(t.turn.id, t.rating) for t in found} == {("t0", 1.0), ("t1", -1.0)}
    assert {t.completion.text for t in found} == {"Answer 0.", "Answer 1."}
