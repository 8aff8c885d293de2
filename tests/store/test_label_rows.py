"""Rows of labels: what several labellers say together, one row a ranking, provenance, and why an item has no row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demeanor.core.types import Preference
from demeanor.data import rows
from demeanor.store import label_rows, label_work, labels
from demeanor.store.database import Database
from demeanor.store.labels import Choice, GivenLabel, LabelAnswer, LabelItem, LabelQueue, Role
from tests.conftest import each


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "labels.db")
    yield made
    made.close()


def given(item: str, who: str, choice: Choice, ranks: tuple[int, ...], role: Role = "labeller") -> GivenLabel:
    return GivenLabel(item, who, role, choice, ranks, tuple(range(len(ranks))), "", 0, "")


def label(choice: Choice, *ranks: int, role: Role = "labeller") -> GivenLabel:
    return given("i", "a", choice, ranks, role)


@pytest.mark.parametrize(
    ("said", "together"),
    [
        ([], "no label"),
        ([label("ranked", 1, 0)], (1, 0)),
        ([label("ranked", 1, 0), label("ranked", 0, 1)], "labellers disagree"),
        ([label("ranked", 1, 0), label("ranked", 0, 1), label("ranked", 1, 0)], (1, 0)),
        ([label("ranked", 1, 0), label("tie", 0, 0)], (1, 0)),
        ([label("tie", 0, 0), label("tie", 0, 0)], "tie"),
        ([label("all_bad", 0, 0), label("ranked", 0, 1)], "all answers are bad"),
        ([label("all_bad", 0, 0), label("ranked", 0, 1), label("ranked", 0, 1)], (0, 1)),
        ([label("ranked", 1, 0), label("ranked", 0, 1), label("ranked", 0, 1, role="adjudicator")], (0, 1)),
        ([label("ranked", 0, 1), label("all_bad", 0, 0, role="adjudicator")], "all answers are bad"),
        ([label("ranked", 0, 1, 2, 3), label("ranked", 1, 0, 2, 3)], (0, 0, 1, 2)),
    ],
)
def test_labels_of_an_item_become_ranks_or_a_reason(
    said: list[GivenLabel], together: tuple[int, ...] | str
) -> None:
    assert label_rows.consensus(said) == together


def queue(database: Database, answers: int) -> LabelQueue:
    texts = tuple(
        LabelAnswer(f"a{n}", f"desk:{n}", f"key{n}", 7 + n, (-0.25, -0.5), f"turn-{n}")
        for n in range(answers)
    )
    prompt = ({"role": "user", "content": "which?"},)
    made = [LabelItem(f"i{n}", n, prompt, texts, tuple(range(answers)) if n == 2 else None) for n in range(3)]
    labels.create(database, LabelQueue("q", 2), made)
    return labels.queue_of(database, "q")


def test_a_ranking_stays_one_row_with_what_made_it(database: Database) -> None:
    made = queue(database, 4)
    label_work.add_given(
        database,
        made,
        [
            given("i0", "edda", "ranked", (2, 0, 1, 3)),
            given("i0", "odin", "ranked", (3, 0, 1, 2)),
            given("i2", "edda", "ranked", (0, 1, 2, 3)),
        ],
    )
    found = label_rows.export(database, "q")
    assert found.dropped == {"no label": 1}, "i1; the check i2 gives no row and is no reason"
    (row,) = found.rows
    parsed = rows.parse(row, "preferences", "here")
    assert isinstance(parsed, Preference)
    assert parsed.ranks == (2, 0, 1, 2)
    about = row["provenance"]
    assert about["answers"][1] == {
        "model": "desk:1",
        "stack_key": "key1",
        "seed": 8,
        "turn_id": "turn-1",
        "logprob": -0.75,
        "tokens": 2,
    }
    assert (about["labels"], about["agreeing"]) == (2, 2)
    assert "edda" not in str(row), "labellers are hashes"
    assert len(set(each(about["labellers"]))) == 2


def test_a_pair_becomes_chosen_and_rejected_and_each_gives_a_row_a_label(database: Database) -> None:
    made = queue(database, 2)
    label_work.add_given(
        database,
        made,
        [
            given("i0", "edda", "ranked", (1, 0)),
            given("i0", "odin", "ranked", (0, 1)),
            given("i1", "edda", "ranked", (1, 0)),
        ],
    )
    together = label_rows.export(database, "q")
    assert [(r["chosen"], r["rejected"]) for r in together.rows] == [("a1", "a0")]
    assert together.dropped == {"labellers disagree": 1}
    assert [r["chosen"] for r in label_rows.export(database, "q", each=True).rows] == ["a1", "a0", "a1"]
    sheet = list(label_rows.sheet(labels.items_of(database, "q"), labels.labels_of(database, "q"), "q"))
    assert [x["ranks"] for x in sheet] == [[1, 0], [0, 1], [1, 0]]
