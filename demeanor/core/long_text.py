"""Long text without holding the event loop or the interpreter: folded for matching, searched in slices, judged in a
thread.

Folding: case, width, look-alikes and invisible characters do not matter. It is by character, so the pieces that a
text comes in do not matter either; spans are mapped back to the original. Adding a piece and reading the end cost
their own length only.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import ParamSpec, TypeVar


class Growing:
    """A string that grows by pieces; a part costs as much as its own length, not as the whole."""

    def __init__(self) -> None:
        self.length = 0
        self._pieces: list[str] = []
        self._starts: list[int] = []

    def add(self, piece: str) -> None:
        if piece:
            self._starts.append(self.length)
            self._pieces.append(piece)
            self.length += len(piece)

    def part(self, start: int, end: int | None = None) -> str:
        """Return the characters from `start` to `end` (None: to the last)."""
        end = self.length if end is None else end
        if start >= end:
            return ""
        first, last = bisect_right(self._starts, start) - 1, bisect_right(self._starts, end - 1)
        offset = self._starts[first]
        return "".join(self._pieces[first:last])[start - offset : end - offset]


class Folded:
    """Original text and its folded form, both growing."""

    def __init__(self, text: str = "") -> None:
        self._original = self._folded = Growing()
        self._origins: array[int] | None = None  # None while all text is ASCII: both are equal
        self.add(text)

    def add(self, text: str) -> None:
        """Append the next piece of the original."""
        if self._origins is None and text.isascii():
            self._original.add(text)
            return
        if self._origins is None:
            self._origins = array("q", range(self._original.length))
            self._folded = Growing()
            self._folded.add(self._original.part(0))
        at, folded = self._original.length, list[str]()
        for run in _RUNS.findall(text):
            if run.isascii():
                self._origins.extend(range(at, at + len(run)))
                folded.append(run)
            else:
                for offset, character in enumerate(run):
                    form = fold(character)
                    self._origins.extend([at + offset] * len(form))
                    folded.append(form)
            at += len(run)
        self._folded.add("".join(folded))
        self._original.add(text)

    @property
    def text(self) -> str:
        """The whole folded text; use `part` while it grows."""
        return self._folded.part(0)

    @property
    def original(self) -> str:
        """The whole original text."""
        return self._original.part(0)

    @property
    def lengths(self) -> tuple[int, int]:
        """Characters of the folded text and of the original."""
        return self._folded.length, self._original.length

    def part(self, start: int) -> str:
        """Return the folded text from `start` on."""
        return self._folded.part(start)

    def original_part(self, start: int, end: int) -> str:
        """Return the original from `start` to `end`."""
        return self._original.part(start, end)

    def origin(self, at: int) -> int:
        """Return where the folded character `at` begins in the original; the end for the folded end."""
        if self._origins is None or at >= len(self._origins):
            return self._original.length if at >= self._folded.length else at
        return self._origins[at]

    def before(self, at: int) -> int:
        """Return how much of the original certainly precedes the folded character `at`, without splitting
        one."""
        return min(self.origin(at), self.origin(at - 1) + 1) if at else 0

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return a folded span (not empty) as a span of the original."""
        return self.origin(start), self.origin(end - 1) + 1


_RUNS = re.compile(r"[\x00-\x7f]+|[^\x00-\x7f]+")


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


SLICE = 2**14


def scan(pattern: re.Pattern[str], text: str, start: int) -> Iterator[re.Match[str]]:
    """Yield matches (of 64 characters at most) in order, a slice of the text at a time: one search through a long text would hold
    the interpreter, and with it every other thread."""
    at = start
    while at < len(text):
        end = at + SLICE
        for match in pattern.finditer(text, at, end + 64):
            if match.start() >= end:
                break
            yield match
            end = max(end, match.end())
        at = end


def plain_digits(text: str) -> str:
    """Return decimal digits of any script as ASCII."""
    return text if text.isascii() else "".join(str(unicodedata.decimal(c)) for c in text)


P = ParamSpec("P")
R = TypeVar("R")
LONG_TEXT = 4_096  # characters; shorter ones cost less than a change of threads


async def off_loop(size: int, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run work on a text of `size` characters: long ones in a thread, one after another, so that the event loop
    goes on."""
    if size < LONG_TEXT:
        return work(*args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_text_thread(), lambda: work(*args, **kwargs))


@cache
def _text_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="demeanor-text")
