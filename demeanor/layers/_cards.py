"""Card numbers in folded text: known leading digits and length, right check digit (Luhn), however their digits are grouped.

In: text and a place. Out: the span of the first number that begins there or later. Beside further numbers only the usual
groupings count, so a list of numbers is seldom taken for a card.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

import re2

SEPARATORS = " \t\n._/-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
DIGITS = re2.compile(r"\p{Nd}+")
ISSUERS: tuple[tuple[str, str, frozenset[int]], ...] = (
    ("4", "4", frozenset({13, 16, 19})),  # Visa
    ("51", "55", frozenset({16})),
    ("2221", "2720", frozenset({16})),  # Mastercard
    ("34", "34", frozenset({15})),
    ("37", "37", frozenset({15})),  # American Express
    ("6011", "6011", frozenset(range(16, 20))),
    ("644", "659", frozenset(range(16, 20))),
    ("62", "62", frozenset(range(16, 20))),
    ("3528", "3589", frozenset(range(16, 20))),
    ("300", "305", frozenset(range(14, 20))),
    ("36", "36", frozenset(range(14, 20))),
    ("38", "39", frozenset(range(14, 20))),
    ("2200", "2204", frozenset(range(16, 20))),
    ("50", "50", frozenset(range(13, 20))),
    ("56", "58", frozenset(range(13, 20))),
    ("67", "67", frozenset(range(13, 20))),
)
"""Leading digits (from, to) and lengths of card numbers. Source: ISO/IEC 7812 ranges as published by the card schemes."""
LAYOUTS = ((4, 6, 5), (4, 6, 4))
MAX_DIGITS, MAX_GAP = 19, 2
WIDTH = MAX_DIGITS + MAX_GAP * MAX_DIGITS + 1
"""The longest span: every digit alone, and the separators and digit that may follow."""


def find(text: str, start: int) -> tuple[int, int] | None:
    """The span of the first card number that begins at or after `start`."""
    for first in _groups(text, start):
        found = max((end for end in _card_ends(text, first)), default=None)
        if found is not None:
            return first[0], found
    return None


def _card_ends(text: str, first: tuple[int, int]) -> Iterator[int]:
    """Every place where a card that begins with this group of digits may end."""
    sizes: list[int] = []
    digits, group = "", first
    while len(digits) + group[1] - group[0] <= MAX_DIGITS:
        digits += "".join(str(unicodedata.decimal(c)) for c in text[group[0] : group[1]])
        sizes.append(group[1] - group[0])
        following = _next_group(text, group[1])
        usual = len(sizes) == 1 or tuple(sizes) in LAYOUTS or (set(sizes[:-1]) == {4} and sizes[-1] <= 4)
        if (usual or (following is None and not _follows_group(text, first[0]))) and is_card(digits):
            yield group[1]
        if following is None:
            return
        group = following


def is_card(digits: str) -> bool:
    """Whether plain digits are a card number."""
    issued = any(low <= digits[: len(low)] <= high and len(digits) in sizes for low, high, sizes in ISSUERS)
    return issued and luhn(digits)


def luhn(digits: str) -> bool:
    """Whether the last digit checks the others. Source: ISO/IEC 7812-1 annex B."""
    doubled = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _groups(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Whole runs of digits that begin at or after `start`."""
    while (match := DIGITS.search(text, start)) is not None:
        begin, start = match.span()
        if begin == 0 or not text[begin - 1].isdecimal():
            yield begin, start


def _next_group(text: str, end: int) -> tuple[int, int] | None:
    """The digits that follow `end` after one or two separators."""
    at = end
    while at < len(text) and at - end < MAX_GAP and text[at] in SEPARATORS:
        at += 1
    last = at
    while last < len(text) and last - at <= MAX_DIGITS and text[last].isdecimal():
        last += 1
    return (at, last) if end < at < last else None


def _follows_group(text: str, start: int) -> bool:
    at = start - 1
    while at >= 0 and start - at <= MAX_GAP and text[at] in SEPARATORS:
        at -= 1
    return 0 <= at < start - 1 and text[at].isdecimal()
