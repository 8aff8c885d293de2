"""Suites: round trip, identity, and mistakes that are all named with file and line before anything runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Item, Message, ToolCall, ToolSpec
from demeanor.evaluation import items as suite


def anything(item: Item) -> None:
    """A check that finds nothing wrong."""


ITEM = Item(
    "a",
    (
        Message("system", "Be brief."),
        Message("assistant", "", (ToolCall("1", "add", '{"x": 1}'),)),
        Message("tool", "2", tool_call_id="1"),
        Message("user", "Wann fährt die Fähre?"),
    ),
    "exact",
    {"answers": ["17"]},
    "facts",
    "c1",
    None,
    ("held-out",),
    (ToolSpec("add", "adds", {"type": "object"}),),
)


def test_what_is_saved_is_read_back_equal(tmp_path: Path) -> None:
    items = (ITEM, replace(ITEM, id="b", twin="a", tools=(), tags=()))
    suite.save_suite(items, tmp_path / "suite.jsonl")
    assert suite.load_suite(tmp_path / "suite.jsonl", wrong=anything) == items


def test_the_hash_is_of_content_and_not_of_order() -> None:
    other = replace(ITEM, id="b")
    assert suite.suite_hash([ITEM, other]) == suite.suite_hash([other, ITEM])
    assert suite.suite_hash([ITEM, other]) != suite.suite_hash(
        [ITEM, replace(other, messages=(Message("user", "When?"),))]
    )


@pytest.mark.parametrize(
    "change",
    [
        {"target": {"answers": ["18"]}},
        {"axis": "notices"},
        {"cluster": "c2"},
        {"tags": ()},
        {"tools": ()},
        {"scorer": "contains"},
    ],
)
def test_everything_an_item_says_is_in_its_hash(change: dict[str, object]) -> None:
    assert suite.item_hash(replace(ITEM, **change)) != suite.item_hash(ITEM)  # type: ignore[arg-type]


def test_every_mistake_of_a_file_is_listed_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    good = '{"id": "%s", "messages": [{"role": "user", "content": "x"}], "scorer": "exact", "target": {}, "axis": "a", "cluster": "c"%s}'
    path.write_text(
        "\n".join(
            [
                good % ("one", ""),
                "not json",
                good % ("one", ""),
                good % ("two", ', "twin": "nobody"'),
                good % ("three", ', "colour": "red"'),
                good.replace('"user"', '"captain"') % ("four", ""),
                good.replace('"axis": "a", ', "") % ("five", ""),
                "",
                good % ("six", ""),
            ]
        )
    )

    def wrong(item: Item) -> str | None:
        return "target: wanted answers" if item.id == "six" else None

    with pytest.raises(DataError) as error:
        suite.load_suite(path, wrong=wrong)
    text = str(error.value)
    assert text.startswith("7 mistakes in the suite:")
    for line, says in [
        (2, "Invalid JSON"),
        (3, "one: this id stands on line 1 already"),
        (4, "twin 'nobody' is not an item"),
        (5, "colour: Extra inputs"),
        (6, "messages.0.role"),
        (7, "axis: Field required"),
        (9, "six: target: wanted answers"),
    ]:
        assert any(f"{path}:{line}: " in one and says in one for one in text.splitlines()), (
            f"line {line} should say {says!r}:\n{text}"
        )


def test_a_scorer_that_does_not_exist_is_named_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"generated items:1: a: unknown scorer kind 'exactly'"):
        suite.load_suite([replace(ITEM, scorer="exactly")])


@pytest.mark.parametrize("name", ["missing.jsonl", "empty.jsonl", "other.csv"])
def test_a_file_that_is_no_suite_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "other.csv").write_text("question,answer\n1,2\n")
    wanted = {
        "missing.jsonl": "no such suite file",
        "empty.jsonl": "no items",
        "other.csv": "missing column id, label, prompt, type",
    }[name]
    with pytest.raises(DataError, match=wanted):
        suite.load_suite(tmp_path / name)


def test_describe_counts_items_clusters_twins_and_tags_by_axis() -> None:
    items = [
        replace(
            ITEM,
            id=str(n),
            cluster=f"c{n // 2}",
            axis="facts" if n < 4 else "notices",
            tags=("held-out",) if n == 0 else (),
        )
        for n in range(6)
    ]
    facts, notices = suite.describe(items)
    assert (facts.axis, facts.items, facts.clusters, facts.tags) == ("facts", 4, 2, (("held-out", 1),))
    assert (notices.axis, notices.items, notices.clusters, notices.scorers) == ("notices", 2, 1, ("exact",))


def test_xstest_is_read_as_contrast_axes_clustered_by_type(shared: Path) -> None:
    items = suite.load_suite(shared / "xstest" / "xstest_prompts.csv")
    assert Counter(item.axis for item in items) == {"safe_twin": 250, "unsafe": 200}
    assert {item.target["refuse"] for item in items if item.axis == "unsafe"} == {True}
    clusters = {
        axis: {item.cluster for item in items if item.axis == axis} for axis in ("safe_twin", "unsafe")
    }
    assert clusters["unsafe"] <= clusters["safe_twin"], (
        "every contrast shares its cluster with the safe prompts it contrasts"
    )
    assert len(clusters["safe_twin"]) == 8
