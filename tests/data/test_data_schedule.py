"""Which rows make which step: a pure function of seed and step that uses every row once per epoch."""

from __future__ import annotations

import pytest
from harbour import trees
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DataError
from demeanor.data.batches import Schedule
from demeanor.data.trees import Tree

rows = st.lists(trees(), min_size=1, max_size=25)
sizes = st.integers(1, 9)


def flat(schedule: Schedule) -> list[int]:
    return [i for step in range(len(schedule)) for micro in schedule[step] for i in micro]


@settings(max_examples=60, deadline=None)
@given(data=rows, batch_rows=sizes, epochs=st.integers(1, 3), seed=st.integers(0, 5))
def test_every_row_is_used_once_per_epoch(data: list[Tree], batch_rows: int, epochs: int, seed: int) -> None:
    schedule = Schedule(data, batch_rows=batch_rows, epochs=epochs, seed=seed)
    used = flat(schedule)
    assert sorted(used) == sorted(list(range(len(data))) * epochs)
    assert len(schedule) == -(-len(data) * epochs // batch_rows)
    whole_steps = len(data) // batch_rows
    first = [i for step in range(whole_steps) for micro in schedule[step] for i in micro]
    assert len(set(first)) == len(first)


@settings(max_examples=60, deadline=None)
@given(data=rows, batch_rows=sizes, epochs=st.floats(0.1, 2.5), seed=st.integers(0, 5))
def test_a_step_depends_on_seed_and_step_alone(
    data: list[Tree], batch_rows: int, epochs: float, seed: int
) -> None:
    forward, again = (Schedule(data, batch_rows=batch_rows, epochs=epochs, seed=seed) for _ in range(2))
    backward = [again[step] for step in reversed(range(len(again)))][::-1]
    assert [forward[step] for step in range(len(forward))] == backward


@settings(max_examples=60, deadline=None)
@given(data=rows, batch_rows=sizes, micro_tokens=st.integers(1, 60))
def test_micro_batches_change_neither_the_set_of_a_step_nor_exceed_their_room(
    data: list[Tree], batch_rows: int, micro_tokens: int
) -> None:
    cut = Schedule(data, batch_rows=batch_rows, epochs=1, seed=0, micro_tokens=micro_tokens)
    whole = Schedule(data, batch_rows=batch_rows, epochs=1, seed=0, micro_tokens=10**9)
    assert len(cut) == len(whole) == -(-len(data) // batch_rows)
    for step in range(len(cut)):
        assert len(whole[step]) == 1
        assert [i for micro in cut[step] for i in micro] == whole[step][0]
        for micro in cut[step]:
            lengths = [data[i].num_tokens for i in micro]
            assert lengths == sorted(lengths)
            assert len(micro) == 1 or sum(lengths) <= micro_tokens


def test_fractional_epochs_use_that_share_of_the_rows() -> None:
    data = [Tree((), ()) for _ in range(10)]
    half, one_and_half = (Schedule(data, batch_rows=4, epochs=e, seed=7) for e in (0.5, 1.5))
    assert len(flat(half)) == len(set(flat(half))) == 5
    assert sorted(flat(one_and_half))[0] == 0
    assert len(flat(one_and_half)) == 15
    assert set(flat(one_and_half)) == set(range(10))
    assert len(flat(Schedule(data, batch_rows=4, epochs=0.01, seed=7))) == 1


def test_other_seeds_and_other_epochs_have_other_orders() -> None:
    data = [Tree((), ()) for _ in range(50)]
    orders = [flat(Schedule(data, batch_rows=1, epochs=2, seed=s)) for s in (0, 1)]
    assert orders[0] != orders[1]
    assert orders[0][:50] != orders[0][50:]


def test_no_rows_and_no_such_step_are_errors() -> None:
    with pytest.raises(DataError, match="no rows"):
        Schedule([], batch_rows=1, epochs=1, seed=0)
    with pytest.raises(IndexError):
        Schedule([Tree((), ())], batch_rows=1, epochs=1, seed=0)[1]
