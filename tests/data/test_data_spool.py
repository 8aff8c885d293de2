"""Trees in a file are the trees that were put there, and a stage that streams trains on the rows of one that does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from harbour import template, tokenizer, trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DataError
from demeanor.core.types import Example, TrainingRow
from demeanor.data.batches import Spool, View, assemble, select, stored, within
from demeanor.data.sources import Problems, read, repeated, weighted
from demeanor.data.trees import Branch, Tree, example_tree, mismatched, packed
from demeanor.stack.schema import Source

labelled = st.builds(
    lambda tree, source, marked: tree._replace(
        source=source, labels=(1, 0, -1)[: len(tree.branches)] if marked else ()
    ),
    trees(),
    st.text(max_size=9),
    st.booleans(),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(labelled, min_size=1, max_size=6))
def test_a_spool_gives_back_exactly_what_was_put_there(rows: list[Tree], tmp_path: Path) -> None:
    spool = stored(rows, tmp_path)
    assert isinstance(spool, Spool)
    assert list(spool) == rows
    assert [spool[i] for i in reversed(range(len(rows)))] == rows[::-1]
    assert spool[-1] == rows[-1]
    assert list(spool[1:]) == rows[1:]
    assert list(select(spool, [0, 0])) == [rows[0]] * 2


def test_a_spool_leaves_no_file_and_takes_nothing_once_it_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "run")
    spool.append(Tree((1,), (Branch((2,), (True,)),)))
    assert len(spool) == 1
    assert spool[0].prompt == (1,)
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(ValueError, match="being read"):
        spool.append(spool[0])
    with pytest.raises(IndexError):
        spool[1]


def test_the_empty_spool_is_an_empty_sequence(tmp_path: Path) -> None:
    assert list(Spool(tmp_path)) == []


def test_what_fits_is_a_view_that_copies_nothing(tmp_path: Path) -> None:
    rows = [Tree((1,), (Branch((2,) * n, (True,) * n),)) for n in (1, 9, 2)]
    assert isinstance(within(stored(rows, tmp_path), 5), View)
    assert list(within(stored(rows, tmp_path), 5)) == within(rows, 5) == [rows[0], rows[2]]
    assert list(mismatched([r._replace(prompt=(i,)) for i, r in enumerate(rows)], 0))


@given(count=st.integers(1, 9), weight=st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 3.4]))
def test_rows_read_anew_for_each_repeat_are_those_of_a_list(count: int, weight: float) -> None:
    assert list(repeated(lambda: range(count), weight, "name")) == weighted(range(count), weight, "name")


def sources(root: Path, *, stream: bool, skip_bad: bool = False) -> list[Source]:
    rows = [{"prompt": f"Who {i}?", "completion": "Marla." * (i + 1)} for i in range(7)]
    (root / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "b.jsonl").write_text(
        "".join(json.dumps({"text": f"Corkel {i}. Marla runs."}) + "\n" for i in range(5))
    )
    return [
        Source(source="a.jsonl", weight=1.5, stream=stream, skip_bad=skip_bad),
        Source(source="b.jsonl", weight=2, limit=4),
    ]


@pytest.mark.parametrize("name", ["turns", "chatml"])
def test_a_stage_that_streams_has_the_trees_of_one_that_does_not(name: str, tmp_path: Path) -> None:
    def made(stream: bool) -> tuple[list[Tree], list[Tree]]:
        def rows(source: Source, problems: Problems) -> Iterator[TrainingRow]:
            return read(source, root=tmp_path, problems=problems)

        def render(row: TrainingRow) -> Tree:
            assert isinstance(row, Example)
            return example_tree(row, template(name), tokenizer())

        found = assemble(
            sources(tmp_path, stream=stream),
            read=rows,
            render=render,
            document=tokenizer().document,
            folder=tmp_path,
        )
        assert isinstance(found.trees, View) == stream
        return list(found.trees), list(packed(found.documents, 16, 100, seed=3))

    (kept, rows_packed), (streamed, rows_streamed) = made(False), made(True)
    assert kept == streamed
    assert rows_packed == rows_streamed
    assert len(kept) == 10  # 1.5 x 7 rows, rounded to even
    assert [t.source.rsplit(":", 1)[1] for t in kept[:7]] == list(
        "1234567"
    )  # a whole repeat, then a fixed draw
    assert all(a.source < b.source for a, b in pairwise(kept[7:]))


def test_a_row_that_cannot_be_rendered_stops_a_stage_or_is_skipped_and_said(tmp_path: Path) -> None:
    def render(row: TrainingRow) -> Tree:
        if row.source.endswith(":2"):
            raise DataError(f"{row.source}: no token of it carries loss")
        return Tree((1,), (Branch((2,), (True,)),), source=row.source)

    said: list[str] = []
    for skip_bad in (False, True):

        def run(skip_bad: bool = skip_bad) -> int:
            return len(
                assemble(
                    sources(tmp_path, stream=False, skip_bad=skip_bad)[:1],
                    read=lambda s, problems: read(s, root=tmp_path, problems=problems),
                    render=render,
                    document=tokenizer().document,
                    folder=tmp_path,
                    say=said.append,
                ).trees
            )

        if skip_bad:
            assert run() == 9  # 1.5 x 6
            assert said == [
                f"a.jsonl: skipped 1 of 7 rows:\n  {tmp_path}/a.jsonl:2: no token of it carries loss"
            ]
        else:
            with pytest.raises(DataError, match=r"a\.jsonl:2: no token"):
                run()
