"""What the pages keep, in both databases: votes, marks, conversations, and the search of turns."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demeanor.core.errors import UsageError
from demeanor.core.types import Decoding, Done, Message, Refusal, RuleHit, Text, Turn
from demeanor.store import comparisons, conversations, marks, turn_search
from demeanor.store.database import Database, open_url
from demeanor.store.turn_search import TurnFilter

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def database(database_url: str, tmp_path: Path) -> Iterator[Database]:
    made = open_url(database_url, root=tmp_path, now=lambda: NOON)
    yield made
    made.close()


async def record(
    database: Database, id: str, question: str, *, user: str = "ann", refused: bool = False, at: int = 0
) -> None:
    turn = Turn((Message("user", question),), Decoding(), id=id, user=user, variant="desk", stack_key="k")
    said = (
        [RuleHit("cards", "input", "blocked", "why", score=0.5), Refusal("policy", "cards", "why", "No.")]
        if refused
        else [Text(f"Re {question}")]
    )
    started = NOON + timedelta(minutes=at)
    await database.record(turn, [*said, Done("content_filter" if refused else "stop")], started, started)


async def test_votes_need_both_turns_and_go_with_either(database: Database) -> None:
    await record(database, "a", "x")
    await record(database, "b", "x")
    id = await comparisons.add(database, "a", "b", "second", user="ann", blind=True)
    assert await comparisons.add(database, "a", "none", "tie", user="ann") is None
    (kept,) = comparisons.comparisons(database, "b")
    assert (kept.id, kept.first, kept.second, kept.verdict, kept.blind, kept.created) == (
        id,
        "a",
        "b",
        "second",
        True,
        NOON,
    )
    assert comparisons.comparisons(database, "c") == []
    with pytest.raises(UsageError, match="both_bad"):
        await comparisons.add(database, "a", "b", "bothbad", user="ann")
    await database.forget("b")
    assert comparisons.comparisons(database) == []


async def test_one_mark_for_each_turn_and_rule(database: Database) -> None:
    await record(database, "a", "x", refused=True)
    assert await marks.put(database, "a", "cards", "true_positive", user="op")
    assert await marks.put(database, "a", "cards", "false_positive", user="op", note="asked in general")
    assert await marks.put(database, "a", "", "true_negative", user="op")
    assert [(m.rule, m.mark, m.note) for m in marks.marks(database, "a")] == [
        ("", "true_negative", ""),
        ("cards", "false_positive", "asked in general"),
    ]
    assert await marks.put(database, "a", "", None, user="op")
    assert len(marks.marks(database)) == 1
    assert not await marks.put(database, "none", "cards", "true_positive", user="op")


async def test_turns_are_found_by_words_rule_marks_and_time(database: Database) -> None:
    await record(database, "a", "Grüße 100% O'Brien \\", at=0)
    await record(database, "b", "my card", user="bob", refused=True, at=1)
    database.add_feedback("a", 1.0)
    await marks.put(database, "b", "cards", "true_positive", user="op")

    def found(**fields: object) -> list[str]:
        return [t.id for t in turn_search.search(database, TurnFilter(**fields))]  # type: ignore[arg-type]

    assert found() == ["b", "a"]
    assert [found(query=q) for q in ("GRÜSSE", "Grüße", "0%", "o'brien", "\\", "%", "re gr", "a")] == [
        [],
        ["a"],
        ["a"],
        ["a"],
        ["a"],
        ["a"],
        ["a"],
        ["b", "a"],
    ]
    assert found(rule="cards") == ["b"]
    assert found(rule="card") == []
    assert (found(refused=True), found(refused=False)) == (["b"], ["a"])
    assert (found(rated="up"), found(rated="down"), found(rated="any")) == (["a"], [], ["a"])
    assert (found(marked=True), found(marked=False)) == (["b"], ["a"])
    assert found(since=NOON + timedelta(seconds=30)) == ["b"]
    assert found(until=NOON + timedelta(seconds=30)) == ["a"]
    assert (found(user="bob"), found(id="a"), found(variant="x")) == (["b"], ["a"], [])
    (summary,) = turn_search.search(database, TurnFilter(id="a"))
    assert (summary.question, summary.rating, summary.marks) == ("Grüße 100% O'Brien \\", 1.0, 0)
    events = turn_search.policy_events(database)
    assert [(e.turn, e.kind, e.event["rule"]) for e in events] == [
        ("b", "RuleHit", "cards"),
        ("b", "Refusal", "cards"),
    ]
    assert turn_search.policy_events(database, NOON + timedelta(hours=1)) == []
    assert (turn_search.count(database), turn_search.variants(database)) == (2, ["desk"])


async def test_conversations_are_each_users_own(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    await conversations.put(database, "ann", "c", title="Boats", words="Ferry 100% a_b", body="{}")
    await conversations.put(database, "bob", "c", title="Other", words="ferry", body="[]")
    await conversations.put(database, "ann", "c", title="Ships", words="Ferry 100% a_b", body='{"x": 1}')
    assert [c.title for c in conversations.conversations(database, "ann")] == ["Ships"]
    assert [
        len(conversations.conversations(database, "ann", query=q)) for q in ("FERRY", "0%", "axb", "a_b")
    ] == [1, 1, 0, 1]
    assert (conversations.body(database, "ann", "c"), conversations.body(database, "eve", "c")) == (
        '{"x": 1}',
        None,
    )
    monkeypatch.setattr(conversations, "MAX_CONVERSATIONS", 2)
    for id in ("d", "e"):
        await conversations.put(database, "ann", id, title=id, words="", body="{}")
    assert len(conversations.conversations(database, "ann")) == 2
    assert await conversations.remove(database, "bob", "c")
    assert not await conversations.remove(database, "bob", "c")
