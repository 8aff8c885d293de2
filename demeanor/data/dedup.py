"""Rows that say the same twice: exactly (normalised text) or nearly (word 5-grams), found without comparing all pairs.

In: texts. Out: for each text that repeats an earlier one, which, and how alike they are. Near ones are proposed by MinHash-LSH and
decided by the exact Jaccard similarity of their 5-grams, so none is dropped by chance; one at the threshold is missed once in a hundred.
Source: Broder 1997 (MinHash); Indyk & Motwani 1998 (LSH); Lee et al. 2022 (5-grams of words, training data).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from demeanor.data.words import ngrams, words

NGRAM, HASHES = 5, 128
MISSED = 0.01  # share of pairs at the threshold that the bands may overlook

Grams = NDArray[np.uint64]


class Duplicate(NamedTuple):
    """Text `row` repeats the earlier text `of`; `similarity` is their Jaccard similarity, 1 for equal normalised texts."""

    row: int
    of: int
    similarity: float


def duplicates(texts: Iterable[str], threshold: float | None = 0.8) -> list[Duplicate]:
    """Every text that repeats one that stays: word by word, or with a similarity of at least `threshold` (null: exact only).

    A text that is dropped is never what another is compared with, so a chain of small changes does not swallow distinct texts.
    """
    found: list[Duplicate] = []
    exact: dict[bytes, int] = {}
    near = None if threshold is None else _Near(threshold)
    for i, text in enumerate(texts):
        tokens = words(text)
        digest = hashlib.blake2b(" ".join(tokens).encode(), digest_size=16).digest()
        if digest in exact:
            found.append(Duplicate(i, exact[digest], 1.0))
            continue
        match = near.match(grams(tokens)) if near and tokens else None
        if match is not None:
            found.append(Duplicate(i, *match))
            continue
        exact[digest] = i
        if near and tokens:
            near.keep(i)
    return found


def clusters(found: Iterable[Duplicate]) -> dict[int, list[Duplicate]]:
    """Duplicates by the text that stays, most first."""
    groups: defaultdict[int, list[Duplicate]] = defaultdict(list)
    for duplicate in found:
        groups[duplicate.of].append(duplicate)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def grams(tokens: list[str]) -> Grams:
    """The distinct word 5-grams of a text, hashed and sorted; a shorter text is one gram of all its words."""
    hashed = {
        int.from_bytes(hashlib.blake2b(g.encode(), digest_size=8).digest(), "little")
        for g in ngrams(tokens, min(NGRAM, len(tokens)))
    }
    return np.array(sorted(hashed), np.uint64)


def jaccard(a: Grams, b: Grams) -> float:
    """Share of the grams of both that both have: |A and B| / |A or B|."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows in each) of HASHES hashes: the longest rows with which a pair at the threshold is proposed 99 times in 100.

    A pair of similarity s is proposed with probability 1 - (1 - s^rows)^bands.
    """
    fitting = [rows for rows in (1, 2, 4, 8, 16, 32) if (1 - threshold**rows) ** (HASHES // rows) <= MISSED]
    rows = max(fitting, default=1)
    return HASHES // rows, rows


class _Near:
    """Texts kept so far, by the bands of their signatures."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._bands, self._rows = bands(threshold)
        rng = np.random.default_rng(0)
        self._a = rng.integers(0, 2**63, HASHES, np.uint64) * np.uint64(2) + np.uint64(1)  # odd multipliers
        self._b = rng.integers(0, 2**63, HASHES, np.uint64)
        self._grams: dict[int, Grams] = {}
        self._tables: list[defaultdict[bytes, list[int]]] = [defaultdict(list) for _ in range(self._bands)]
        self._last: tuple[Grams, list[bytes]] | None = None

    def match(self, found: Grams) -> tuple[int, float] | None:
        """The kept text most like these grams, the earliest of equals; None if none reaches the threshold."""
        keys = self._keys(found)
        self._last = found, keys
        proposed = sorted({i for table, key in zip(self._tables, keys) for i in table.get(key, ())})
        alike = [(jaccard(found, self._grams[i]), i) for i in proposed]
        similarity, i = max(alike, key=lambda pair: (pair[0], -pair[1]), default=(0.0, -1))
        return (i, similarity) if i >= 0 and similarity >= self._threshold else None

    def keep(self, i: int) -> None:
        """Keep the text that was matched last, as number `i`."""
        assert self._last is not None
        self._grams[i], keys = self._last
        for table, key in zip(self._tables, keys):
            table[key].append(i)

    def _keys(self, found: Grams) -> list[bytes]:
        """The signature (least of every hash over the grams, multiply-shift) cut into bands."""
        least = np.full(HASHES, np.iinfo(np.uint64).max, np.uint64)
        for start in range(0, len(found), 1024):  # a long document in parts: the product is HASHES x grams
            hashed = self._a[:, None] * found[None, start : start + 1024] + self._b[:, None]  # modulo 2^64
            least = np.minimum(least, (hashed >> np.uint64(32)).min(axis=1))
        signature = least.astype(np.uint32)
        return [signature[i : i + self._rows].tobytes() for i in range(0, HASHES, self._rows)]
