"""Repeats: found as comparing every pair finds them, whatever the order of the words between, and nothing distinct is dropped."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.data.similarity import (
    HASHES,
    Duplicate,
    bands,
    clusters,
    duplicates,
    grams,
    jaccard,
    ngrams,
    words,
)

VOCABULARY = [f"w{i}" for i in range(400)]


def exact(texts: list[str], threshold: float) -> list[Duplicate]:
    """Slow and obvious: every text against every one that stays, as sets of 5-grams."""

    def shingles(text: str) -> frozenset[str]:
        tokens = words(text)
        return frozenset(ngrams(tokens, min(5, len(tokens))))

    kept: list[int] = []
    found = []
    for i, text in enumerate(texts):
        same = next((k for k in kept if words(texts[k]) == words(text)), None)
        alike = [
            (len(shingles(text) & shingles(texts[k])) / len(shingles(text) | shingles(texts[k])), k)
            for k in kept
        ]
        best, of = max(alike, key=lambda pair: (pair[0], -pair[1]), default=(0.0, -1))
        if same is not None:
            found.append(Duplicate(i, same, 1.0))
        elif best >= threshold:
            found.append(Duplicate(i, of, best))
        else:
            kept.append(i)
    return found


def edited(text: list[str], changes: int, rng: random.Random) -> list[str]:
    text = list(text)
    for _ in range(changes):
        text[rng.randrange(len(text))] = rng.choice(VOCABULARY)
    return text


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8])
def test_near_repeats_are_those_of_the_slow_twin(threshold: float) -> None:
    rng = random.Random(3)
    originals = [[rng.choice(VOCABULARY) for _ in range(rng.randint(20, 80))] for _ in range(40)]
    texts = [" ".join(t) for t in originals] + [
        " ".join(edited(t, changes, rng)) for t in originals for changes in (0, 1, 2, 4, 8)
    ]
    rng.shuffle(texts)
    found, twin = duplicates(texts, threshold), exact(texts, threshold)
    assert found == twin
    assert {d.similarity == 1 for d in twin} == {True, False}


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ab ,"), max_size=12), max_size=8))
def test_exact_repeats_have_the_same_words(texts: list[str]) -> None:
    seen: dict[str, int] = {}
    expected = []
    for i, text in enumerate(texts):
        if " ".join(words(text)) in seen:
            expected.append(Duplicate(i, seen[" ".join(words(text))], 1.0))
        seen.setdefault(" ".join(words(text)), i)
    assert duplicates(texts, None) == expected


def test_case_punctuation_and_width_do_not_make_a_text_another() -> None:
    assert [
        d.of
        for d in duplicates(
            [
                "Marla runs the ferry.",
                "marla  RUNS the ferry",
                "Ｍarla runs, the ferry!",
                "Marla ran the ferry.",
            ],
            None,
        )
    ] == [0, 0]


def test_a_chain_of_small_changes_does_not_swallow_distinct_texts() -> None:
    a = [f"w{i}" for i in range(40)]
    b, c = (
        [*a[:28], *(f"x{i}" for i in range(12))],
        [*a[:14], *(f"y{i}" for i in range(14)), *(f"x{i}" for i in range(12))],
    )
    texts = [" ".join(t) for t in (a, b, c)]
    assert (
        jaccard(grams(words(texts[0])), grams(words(texts[1]))) == 24 / 48
    )  # 36 grams each, the first 24 shared
    assert [d.row for d in duplicates(texts, 0.5)] == [1]


@given(threshold=st.floats(0.1, 1.0))
def test_a_pair_at_the_threshold_is_proposed_99_times_in_100(threshold: float) -> None:
    number, rows = bands(threshold)
    assert number * rows == HASHES
    assert rows == 1 or 1 - (1 - threshold**rows) ** number >= 0.99


def test_jaccard_is_the_shared_part_of_both() -> None:
    assert jaccard(np.array([1, 2, 3], np.uint64), np.array([2, 3, 4, 5], np.uint64)) == 2 / 5


def test_clusters_are_largest_first_and_in_order() -> None:
    found = [Duplicate(2, 0, 1.0), Duplicate(3, 1, 0.9), Duplicate(5, 1, 0.8)]
    assert clusters(found) == {1: found[1:], 0: found[:1]}


def test_empty_texts_repeat_each_other_and_nothing_else() -> None:
    assert duplicates(["", "a", "..."], 0.8) == [Duplicate(2, 0, 1.0)]


def test_of_texts_that_are_equally_similar_the_earliest_is_kept() -> None:
    words = [f"word{i}" for i in range(60)]
    first, second = [*words[:-1], "left"], [*words[:-1], "right"]
    found = duplicates([" ".join(first), "something else", " ".join(first), " ".join(second)], threshold=0.8)
    assert [(d.row, d.of) for d in found] == [(2, 0), (3, 0)]
    apart = [" ".join([*words[:20], *[f"{name}{i}" for i in range(12)]]) for name in ("a", "b")]
    between = " ".join(words[:20])
    assert [(d.row, d.of) for d in duplicates([*apart, between], threshold=0.5)] == [(2, 0)]
    assert [(d.row, d.of) for d in duplicates([*apart[::-1], between], threshold=0.5)] == [(2, 0)]
