"""Packed pretraining rows: nothing is lost, nothing is used twice in a pass, and most documents stay whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DataError
from demeanor.data.trees import collate, num_scored, packed

EOS = 0
documents = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(
    lambda lengths: [[*range(1000 * n + 1, 1000 * n + size), EOS] for n, size in enumerate(lengths)]
)


@settings(max_examples=100, deadline=None)
@given(docs=documents, row_tokens=st.integers(8, 24), passes=st.integers(1, 3), seed=st.integers(0, 3))
def test_each_pass_uses_every_token_of_every_document_once(
    docs: list[list[int]], row_tokens: int, passes: int, seed: int
) -> None:
    every = Counter(t for d in docs for t in d)
    total = sum(every.values()) * passes
    rows = list(packed(docs, row_tokens, total, seed))
    stream = [t for row in rows for t in row.branches[0].tokens]
    assert all(len(row.branches[0].tokens) == row_tokens + 1 for row in rows)
    assert sum(map(num_scored, rows)) == len(rows) * row_tokens >= total
    for n in range(passes):  # a row may hold the end of one pass and the start of the next, in mixed order
        start, end = n * sum(every.values()), (n + 1) * sum(every.values())
        inside = Counter(
            stream[
                -(-start // (row_tokens + 1)) * (row_tokens + 1) : end // (row_tokens + 1) * (row_tokens + 1)
            ]
        )
        assert not inside - every
    assert not Counter({t: passes * count for t, count in every.items()}) - Counter(stream)


def test_documents_stay_whole_and_in_order_where_they_fit() -> None:
    docs = [[*range(1000 * n + 1, 1000 * n + 10 + n % 23), EOS] for n in range(300)]
    total = sum(map(len, docs))
    rows = [row.branches[0].tokens for row in list(packed(docs, 64, total, seed=1))][: total // 65]
    joined = ["," + ",".join(map(str, row)) + "," for row in rows]
    whole = sum(any("," + ",".join(map(str, d)) + "," in row for row in joined) for d in docs)
    assert whole / len(docs) > 0.85  # a plain stream cut every 65 tokens keeps about 70%


def test_the_same_seed_gives_the_same_rows_and_another_one_others() -> None:
    docs = [[*range(n, n + 7), EOS] for n in range(1, 50)]
    assert list(packed(iter(docs), 16, 200, 3)) == list(packed(docs, 16, 200, 3))
    assert list(packed(docs, 16, 200, 3)) != list(packed(docs, 16, 200, 4))


def test_a_document_longer_than_a_row_is_cut_and_continued() -> None:
    rows = list(packed([[*range(1, 100), EOS]], 9, 100, 0))
    starts = [row.branches[0].tokens for row in rows[:10]]
    assert sorted(t for row in starts for t in row) == list(range(100))
    assert all(list(row) == sorted(row, key=lambda t: (t == EOS, t)) for row in starts)


def test_batches_of_packed_rows_all_have_the_same_shape() -> None:
    rows = list(packed([[5] * n + [EOS] for n in range(1, 60)], 32, 640, 0))
    assert {len(collate(rows[i : i + 4]).tokens_T) for i in range(0, 20, 4)} == {4 * 32}


def test_no_documents_is_an_error() -> None:
    with pytest.raises(DataError, match="no documents"):
        list(packed([[], []], 16, 100, 0))


def test_documents_that_fill_a_row_exactly_are_taken_and_never_cut() -> None:
    docs = [[n] * 9 + [EOS] for n in range(1, 41)]
    rows = [row.branches[0].tokens for row in packed(docs, 9, 400, 0)][:40]
    assert sorted(rows) == sorted(map(tuple, docs))
    parts = [[10 * n + size] * size for n in range(1, 21) for size in (6, 4, 3)]
    rows = [row.branches[0].tokens for row in packed(parts, 9, 180, 0)]
    assert len(rows) == 20
    # 6 and 4 fill a row; a 3 after a 6 would leave one token, which only a cut could fill
    assert [sorted(Counter(row).values()) for row in rows] == [[4, 6]] * 20
