"""What users said of recorded turns as candidates: corrections, thumbs on one prompt, votes; complaints only of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.candidates import PreferenceCandidate
from demeanor.core.types import Decoding, Done, Event, Message, Refusal, Text, Turn
from demeanor.store import preference_sources
from demeanor.store.database import Database, open_url
from tests.conftest import each

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    made = open_url(database_url, root=tmp_path, now=lambda: NOON)
    yield made
    made.close()


async def record(
    database: Database, id: str, answer: str, prompt: str = "when?", *, refused: bool = False
) -> None:
    turn = Turn(
        (Message("user", prompt),), Decoding(seed=7), id=id, user="edda", variant=f"desk:{id}", stack_key="k"
    )
    events: list[Event] = [Text(answer), Done("stop")]
    if refused:
        events = [Refusal("policy", "rule", "why", answer), Done("content_filter")]
    await database.record(turn, events, NOON, NOON)


def route(database: Database, turn_id: str, label: str) -> None:
    insert = (
        "INSERT INTO routed_complaints (turn, stack_key, label, layer, repair, evidence, created)"
        " SELECT row, 'k', ?, ?, '', '{}', '2026' FROM turns WHERE id = ?"
    )
    database.write(lambda c: c.execute(insert, (label, label, turn_id)).rowcount).result()


def vote(database: Database, first: str, second: str, verdict: str) -> None:
    insert = (
        "INSERT INTO comparisons (id, created, user, first, second, verdict, blind, comment)"
        " SELECT ?, '2026', 'odin', a.row, b.row, ?, 1, '' FROM turns a, turns b WHERE a.id = ? AND b.id = ?"
    )
    values = (f"cmp-{first}-{second}-{verdict}", verdict, first, second)
    database.write(lambda c: c.execute(insert, values).rowcount).result()


def found(database: Database, **more: Any) -> dict[str, PreferenceCandidate]:
    return {one.source: one for one in preference_sources.candidates(database, **more)}


async def test_a_correction_is_a_lesson_only_where_the_weights_are_at_fault(database: Database) -> None:
    for id in ("a", "b", "c", "d"):
        await record(database, id, f"at {id}", f"when {id}?", refused=id == "d")
        database.add_feedback(id, -1, "wrong", "edda", f"corrected {id}")
    route(database, "a", "weights")
    route(database, "b", "retrieval")
    got = found(database)
    assert got["feedback:a"].unusable == ""
    assert got["feedback:a"].completions == ("corrected a", "at a")
    assert (got["feedback:a"].turn_ids, got["feedback:a"].users) == (("a",), ("edda",))
    assert got["feedback:b"].unusable == "complaint routed to: retrieval"
    assert got["feedback:c"].unusable == "complaint not routed to a layer yet"
    assert got["feedback:d"].unusable == "refused by the layer policy"
    assert found(database, unrouted="keep")["feedback:c"].unusable == ""


async def test_thumbs_up_and_down_on_one_prompt_are_a_pair_and_a_thumb_alone_is_none(
    database: Database,
) -> None:
    await record(database, "good", "at nine")
    await record(database, "bad", "at noon")
    await record(database, "alone", "yes", "open?")
    for id, value in (("good", 1), ("bad", -1), ("alone", 1)):
        database.add_feedback(id, value)
    route(database, "bad", "weights")
    got = found(database)
    assert got["thumbs:good/bad"].completions == ("at nine", "at noon")
    assert got["thumbs:good/bad"].unusable == ""
    assert got["thumbs:alone"].unusable.startswith("a thumb alone")


@pytest.mark.parametrize(
    ("verdict", "completions", "unusable"),
    [
        ("first", ("at nine", "at noon"), ""),
        ("second", ("at noon", "at nine"), ""),
        ("tie", ("at nine", "at noon"), "tie"),
        ("both_bad", ("at nine", "at noon"), "both answers are bad"),
    ],
)
async def test_votes_are_pairs_or_say_why_not(
    database: Database, verdict: str, completions: tuple[str, str], unusable: str
) -> None:
    await record(database, "one", "at nine")
    await record(database, "two", "at noon")
    vote(database, "one", "two", verdict)
    (got,) = each(found(database).values())
    assert (got.completions, got.unusable) == (completions, unusable)
    assert got.users == ("edda", "odin")
    assert got.provenance["blind"] is True
