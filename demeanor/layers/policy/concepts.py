"""Meanings of words: which of the meanings in policies/texts/concepts.yaml stand in a text, near each other and one after another.

In: the words of a normalised text. Out: numbers of features. A word of a script with spaces has the meaning of its longest known
beginning; in a run of another script every known part counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from demeanor.core.registry import SHIPPED

FILE: Path = SHIPPED / "texts" / "concepts.yaml"
NEAR = 7  # words; two meanings at most so far apart are a pair
MOST_MEANINGS = 6  # of one word
WHOLE = 3  # letters; a known word that is so short stands for itself alone
WEIGHT = 0.1  # of each feature, where all n-grams of a text together have length 1
UNSPACED = re.compile("[\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")


@cache
def _known() -> tuple[int, dict[str, tuple[int, ...]], tuple[tuple[str, tuple[int, ...]], ...]]:
    """Return the number of meanings, the meanings of each beginning, and those of scripts without spaces."""
    meanings: dict[str, list[str]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    found: dict[str, list[int]] = {}
    for number, words in enumerate(meanings.values()):
        for word in words:
            found.setdefault(word.lower(), []).append(number)
    every = {word: tuple(numbers) for word, numbers in found.items()}
    return len(meanings), every, tuple((w, n) for w, n in every.items() if UNSPACED.search(w))


@cache
def digest() -> str:
    """Return a hash of the file, which a classifier that reads it keeps."""
    return hashlib.sha256(FILE.read_bytes()).hexdigest()[:16]


@lru_cache(2**16)
def meanings_of(word: str) -> tuple[int, ...]:
    """Return the meanings of a word, in order."""
    _, every, unspaced = _known()
    if not word.isascii() and UNSPACED.search(word):
        return tuple(sorted({n for part, numbers in unspaced if part in word for n in numbers}))[
            :MOST_MEANINGS
        ]
    for end in range(min(len(word), 24), 1, -1):
        if word[:end] in every and (end == len(word) or end > WHOLE):
            return every[word[:end]][:MOST_MEANINGS]
    return ()


def size() -> int:
    """Return the number of features: single meanings, pairs, and three in a row."""
    count = _known()[0]
    return count + count**2 + count**3


def features(words: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the features of a text, each once: its meanings, ordered pairs of near ones, and each three that follow each other."""
    count = _known()[0]
    at = [(i, meaning) for i, word in enumerate(words) for meaning in meanings_of(word)]
    found = {meaning for _, meaning in at}
    for n, (i, one) in enumerate(at):
        for j, two in at[n + 1 : n + 1 + NEAR * MOST_MEANINGS]:
            if i < j <= i + NEAR:
                found.add(count + one * count + two)
    row = [meanings[0] for word in words if (meanings := meanings_of(word))]
    for one, two, three in zip(row, row[1:], row[2:]):
        found.add(count + count**2 + (one * count + two) * count + three)
    return np.array(sorted(found), dtype=np.int64)
