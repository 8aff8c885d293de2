"""Texts by their similarity to a question: BM25 against the formula, ties by order, vectors, and both."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from demeanor.retrieval.similar import K1, B, bm25, by_words, ranked
from demeanor.retrieval.vectors import Matrix

TEXTS = ["ferry to hexby", "ferry times", "lost keys", "opening hours of the office"]


class Letters:
    """An encoder whose vector is which letters a text has."""

    identity = "letters"

    def encode(self, texts: Sequence[str], *, query: bool = False) -> Matrix:
        rows = [[float(text.count(chr(97 + i))) for i in range(26)] for text in texts]
        return np.asarray([np.asarray(r) / np.linalg.norm(r) for r in rows], np.float32)


def test_words_are_ranked_by_bm25_and_stop_words_of_the_question_do_not_count() -> None:
    order = by_words(TEXTS)
    assert order("When does the ferry to Hexby leave?")[:2] == [0, 1]
    assert order("the office of the keys") == [2, 3, 0, 1]  # 2 is shorter


def test_a_score_is_the_formulas() -> None:
    """`keys` stands once in a text of 2 words and in 1 of 4 texts; the mean length is (3 + 2 + 2 + 5) / 4 = 3."""
    idf = math.log(1 + (4 - 1 + 0.5) / (1 + 0.5))
    want = idf * (K1 + 1) / (1 + K1 * (1 - B + B * 2 / 3))
    assert bm25(TEXTS)("the keys") == [0, 0, pytest.approx(want), 0]


def test_equal_texts_and_unknown_words_keep_the_order_of_the_file() -> None:
    assert by_words(["same", "same", "same"])("same") == [0, 1, 2]
    assert by_words(TEXTS)("zzz") == [0, 1, 2, 3]


def test_vectors_and_both_agree_on_a_text_that_is_the_question() -> None:
    assert ranked(TEXTS, "vectors", Letters())("lost keys")[0] == 2
    assert ranked(TEXTS, "both", Letters())("lost keys")[0] == 2
