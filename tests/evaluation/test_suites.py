"""Suites by name: what is offered loads, a wrong name tells the known ones, and floors are what the fixed answers really earn."""

from __future__ import annotations

from pathlib import Path

import pytest

from demeanor.core.errors import DemeanorError
from demeanor.core.types import Item, Message
from demeanor.evaluation import suites
from demeanor.evaluation import suites as library
from demeanor.evaluation.items import save_suite


def item(i: str, scorer: str, target: dict[str, object], question: str = "Say it.") -> Item:
    return Item(i, (Message("user", question),), scorer, target, "a", i)


def test_every_offered_suite_loads_and_ids_are_unique_over_all_of_them() -> None:
    ids = [x.id for name in library.offered() for x in library.items(name, Path())]
    assert len(ids) > 500
    assert len(ids) == len(set(ids))


def test_every_axis_of_a_built_in_suite_says_what_it_asks() -> None:
    silent = [
        x.axis
        for name in suites.known()
        for x in library.measured(library.items(f"builtin:{name}", Path()))
        if not x.about
    ]
    assert not silent


def test_a_wrong_name_tells_the_nearest_one() -> None:
    with pytest.raises(DemeanorError, match="Did you mean 'builtin:format'"):
        library.items("builtin:fromat", Path())


def test_a_path_is_read_from_beside_the_stack(tmp_path: Path) -> None:
    made = (item("i-1", "exact", {"answers": ["ok"]}), item("i-2", "exact", {"answers": ["no"]}))
    save_suite(made, tmp_path / "mine.jsonl")
    assert library.items("mine.jsonl", tmp_path) == made
    (axis,) = library.measured(made)
    assert (axis.items, axis.clusters, axis.detectable) == (2, 2, None)
    assert axis.floors == {"ok": 0.5, "refusal": 0.0, "echo": 0.0}


def test_the_echo_is_the_question_itself() -> None:
    assert library.floor([item("i", "exact", {"answers": ["pier 4"]}, "Pier 4?")], "") == 1.0
    assert library.floor([item("i", "likelihood", {"text": " x"})], "ok") is None
