"""Rows of the training benchmark: what first losses in fp32 are compared on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bench.work import EOS, WORKS, Row, Work, desirable, small


def rows(count: int) -> list[Row]:
    return [(list(range(10, 40 + i)), [[*range(100, 200), EOS], [5, EOS]]) for i in range(count)]


def test_rows_of_real_weights_are_cut_and_keep_their_labels() -> None:
    whole = Work("kto", "kto", rows, batch=8, model=Path("model"))
    cut = small(whole)
    assert (cut.batch, cut.steps) == (4, 3)
    found, given = cut.make(), whole.rows(12)
    assert [len(p) for p, _ in found] == [24, 23] * 6
    assert [desirable(row) for row in found] == [desirable(row) for row in given] == [True, False] * 6
    assert [x[0][-3:] for x in found] == [x[0][-3:] for x in given]
    assert found[0][1] == [[*range(100, 123), EOS], [5, EOS]]


def test_random_weights_keep_their_rows() -> None:
    work = replace(WORKS[0], rows=rows)
    assert (small(work).batch, small(work).steps) == (4, 5)
    assert small(work).rows is rows
