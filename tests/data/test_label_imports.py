"""Exports of Potato and Label Studio: pairs, scales, rankings, ties, and errors that name the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError
from demeanor.data import label_imports


def write(path: Path, rows: list[Any], *, lines: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return path


ITEMS = [
    {"id": "1", "prompt": "which ship?", "responses": ["the Marla", "none"]},
    {"id": "2", "prompt": "when?", "left": "at 9", "right": "at 17"},
    {"id": "3", "prompt": "rank", "responses": ["a", "b", "c", "d"]},
]


def potato(folder: Path, rows: list[Any]) -> label_imports.Imported:
    items = write(folder / "items.jsonl", ITEMS)
    return label_imports.read(
        [write(folder / "alice/annotated_instances.jsonl", rows)], "potato", items=items
    )


def test_potato_pairs_scales_and_rankings_are_read_with_their_annotator(tmp_path: Path) -> None:
    found = potato(
        tmp_path,
        [
            {"id": "1", "displayed_text": "", "label_annotations": {"preference": {"selection": "B"}}},
            {"id": "1", "user_id": "bob", "label_annotations": {"preference": {"selection": "tie"}}},
            {"id": "2", "label_annotations": {"scale": {"scale_value": "-2"}}},
            {"id": "3", "label_annotations": {"quality": {"rank_order": "B,D=A,C"}}},
            {"id": "3", "label_annotations": {"comment": {"text": "x"}}},
        ],
    )
    by_id = {item.id: item for item in found.items}
    assert [(x.labeller, x.choice, x.ranks) for x in by_id["1"].labels] == [
        ("alice", "ranked", (1, 0)),
        ("bob", "tie", (0, 0)),
    ]
    assert by_id["2"].answers == ("at 9", "at 17")
    assert by_id["2"].labels[0].ranks == (0, 1), "a negative value prefers the left one"
    assert by_id["3"].labels[0].ranks == (1, 0, 2, 1)
    assert by_id["1"].prompt == ({"role": "user", "content": "which ship?"},)
    assert found.left_out == {"without a label of this scheme": 1}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "9", "label_annotations": {"p": {"selection": "A"}}}, "'9' is not among the items"),
        ({"id": "1", "label_annotations": {"p": {"selection": "C"}}}, "got 'C', wanted one of A, B"),
        ({"id": "3", "label_annotations": {"p": {"rank_order": "B,A"}}}, "wanted each of 4 answers once"),
        ({"id": "1"}, "has no label_annotations"),
    ],
)
def test_a_wrong_row_of_potato_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        potato(tmp_path, [row])


def test_potato_needs_its_items(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted --items"):
        label_imports.read([write(tmp_path / "a.jsonl", [])], "potato")


def annotation(result: list[dict[str, Any]], who: Any = 10, **more: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "result": result,
        "completed_by": who,
        "lead_time": 4.288,
        "was_cancelled": False,
        **more,
    }


PAIRWISE = {"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": {"selected": "right"}}


def test_label_studio_pairs_choices_and_rankings_are_read(tmp_path: Path) -> None:
    listed = [{"id": "x", "body": "first"}, {"id": "y", "body": "second"}, {"id": "z", "title": "third"}]
    tie = {"from_name": "c", "to_name": "t", "type": "choices", "value": {"choices": ["Both bad"]}}
    ranker = {
        "from_name": "r",
        "to_name": "l",
        "type": "ranker",
        "value": {"ranker": {"rank": ["z", "x", "y"]}},
    }
    tasks = [
        {
            "id": 7,
            "data": {"prompt": "which?", "text1": "one", "text2": "two"},
            "annotations": [
                annotation([PAIRWISE], {"id": 3, "email": "a@example.org"}),
                annotation([tie]),
                annotation([], was_cancelled=True),
            ],
        },
        {"id": 8, "data": {"prompt": "rank", "items": listed}, "annotations": [annotation([ranker])]},
    ]
    found = label_imports.read([write(tmp_path / "export.json", tasks, lines=False)], "label-studio")
    pair, ranking = found.items
    assert pair.answers == ("one", "two")
    assert [(x.labeller, x.choice, x.ranks, x.ms) for x in pair.labels] == [
        ("a@example.org", "ranked", (1, 0), 4288),
        ("10", "all_bad", (0, 0), 4288),
    ]
    assert ranking.answers == ("first", "second", "third")
    assert ranking.labels[0].ranks == (1, 2, 0)
    assert found.left_out == {"annotations that were skipped": 1}


def test_unclear_fields_are_asked_for(tmp_path: Path) -> None:
    data = {"prompt": "which?", "a": "one", "b": "two", "c": "note"}
    task = {"id": 7, "data": data, "annotations": [annotation([PAIRWISE])]}
    path = write(tmp_path / "export.json", [task], lines=False)
    with pytest.raises(DataError, match="name them with --answers"):
        label_imports.read([path], "label-studio")
    found = label_imports.read([path], "label-studio", answers=("a", "b"))
    assert found.items[0].answers == ("one", "two")
    with pytest.raises(DataError, match="has no prompt"):
        label_imports.read([path], "label-studio", answers=("a", "b"), prompt="ask")
