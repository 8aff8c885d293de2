"""Text folded for matching: case, width, look-alikes and invisible characters do not matter.

In: text, piece by piece. Out: folded text, and spans of it mapped back to the original. Folding is by
character, so the pieces do not matter.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache


class Folded:
    """Original text and its folded form, both growing."""

    def __init__(self, text: str = "") -> None:
        self.original = self.text = ""
        self._origins: list[int] | None = None  # None while all text is ASCII: both are equal
        self.add(text)

    def add(self, text: str) -> None:
        """Append the next piece of the original."""
        if self._origins is None and text.isascii():
            self.original += text
            self.text = self.original
            return
        if self._origins is None:
            self._origins = list(range(len(self.original)))
        for at, character in enumerate(text, start=len(self.original)):
            folded = fold(character)
            self.text += folded
            self._origins += [at] * len(folded)
        self.original += text

    def origin(self, at: int) -> int:
        """Return where the folded character `at` begins in the original; the end for the folded end."""
        if self._origins is None or at >= len(self._origins):
            return len(self.original) if at >= len(self.text) else at
        return self._origins[at]

    def before(self, at: int) -> int:
        """Return how much of the original certainly precedes the folded character `at`, without splitting
        one."""
        return min(self.origin(at), self.origin(at - 1) + 1) if at else 0

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return a folded span (not empty) as a span of the original."""
        return self.origin(start), self.origin(end - 1) + 1


@lru_cache(maxsize=4096)
def fold(character: str) -> str:
    """Return one character's NFKC form without invisible characters; ASCII is unchanged."""
    if character.isascii():
        return character
    return "".join(c for c in unicodedata.normalize("NFKC", character) if _visible(c))


# Removed: format characters (zero width, soft hyphen, tags) and lone surrogates; combining marks that
# decorate a letter, and variation selectors (not the vowel signs of scripts); filler letters.
INVISIBLE = frozenset({"Cf", "Cs"})
MARKS = ((0x300, 0x36F), (0x1AB0, 0x1AFF), (0x1DC0, 0x1DFF), (0x20D0, 0x20FF), (0xFE00, 0xFE0F))
FILLERS = "\u115f\u1160\u3164\uffa0"


def _visible(character: str) -> bool:
    marked = any(first <= ord(character) <= last for first, last in MARKS)
    return not marked and character not in FILLERS and unicodedata.category(character) not in INVISIBLE
