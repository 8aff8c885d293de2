"""Training rows that give away what is measured: n words in a row that a row and a suite's item share.

In: the texts of items, and of rows. Out: for a row, the items it overlaps with and the words they share. What to do with them is
for others. Source: Brown et al. 2020, appendix C (n-gram overlap); n is 8 here, theirs was 8 to 13 by suite.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from demeanor.data.words import ngrams, words

MIN_WORDS = 4
"""Items of fewer words are not looked for: their words turn up by chance."""


class Overlap(NamedTuple):
    """The words that a row shares with item `item`."""

    item: str
    ngram: str


class Suite:
    """The n-grams of a suite's items. An item of fewer than `n` words is looked for as a whole; `too_short` were left out."""

    def __init__(self, items: Iterable[tuple[str, str]], n: int = 8) -> None:
        """`items` are (id, text)."""
        self.size, self.too_short = 0, 0
        self._grams: dict[int, dict[str, str]] = {}  # by number of words: n-gram -> first item that has it
        for item, text in items:
            self.size += 1
            tokens = words(text)
            if len(tokens) < min(n, MIN_WORDS):
                self.too_short += 1
                continue
            length = min(n, len(tokens))
            table = self._grams.setdefault(length, {})
            for gram in ngrams(tokens, length):
                table.setdefault(gram, item)

    def overlaps(self, text: str) -> list[Overlap]:
        """The first shared n-gram with each item, in the order they stand in `text`."""
        tokens = words(text)
        found: dict[str, str] = {}
        for length, table in sorted(self._grams.items(), reverse=True):
            for gram in ngrams(tokens, length):
                if gram in table:
                    found.setdefault(table[gram], gram)
        return [Overlap(item, gram) for item, gram in found.items()]
