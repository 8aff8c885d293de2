"""Detectors of personal data: card numbers and IBANs by their check digits, e-mail addresses, phone numbers.

In: text and a position. Out: the span of the first hit from there on. Candidates are found in linear time
(RE2). A hit depends only on its characters and its neighbours within `width`. Next to further numbers only
the usual groupings of a card count, so a list of numbers is seldom a hit.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import re2

Span: TypeAlias = tuple[int, int]
Find: TypeAlias = Callable[[str, int], Span | None]


@dataclass(frozen=True, slots=True)
class Detector:
    """How to find one kind of personal data; `width` is its longest span including the neighbours it
    depends on."""

    find: Find
    width: int


SEPARATORS = " \t\n._/-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_DIGITS = re2.compile(r"\p{Nd}+")
# Leading digits (from, to) and lengths of card numbers. Source: ISO/IEC 7812 ranges published by the schemes.
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
LAYOUTS = ((4, 6, 5), (4, 6, 4))
MAX_DIGITS, MAX_GAP = 19, 2
CARD_WIDTH = (
    MAX_DIGITS + MAX_GAP * MAX_DIGITS + 1
)  # single digits, with the separators and digit that may follow
_LENGTHS = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27
DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22
IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19
MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31
SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
# Length of an IBAN by country. Source: SWIFT IBAN registry.
COUNTRIES: Mapping[str, int] = {code[:2]: int(code[2:]) for code in _LENGTHS.split()}
IBAN = re2.compile(r"(?i)\b[A-Z]{2}[ -]?[0-9]{2}")
EMAIL = re2.compile(r"(?i)[a-z0-9_][a-z0-9._%+\-]{0,63}@(?:[a-z0-9][a-z0-9\-]{0,62}\.){1,4}[a-z]{2,24}")
PHONE = re2.compile(
    r"(?:\+|\b00)[1-9][0-9]{0,2}(?:[ ./-]?\(?[0-9]{1,5}\)?){2,7}\b"  # international
    r"|\(?\b[2-9][0-9]{2}(?:\) ?|[ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b"  # North American
    r"|\b0[1-9][0-9]{1,4}[ /-][0-9]{3,8}(?:[ -][0-9]{2,5}){0,3}\b"
)  # trunk prefix 0
MIN_PHONE, MAX_PHONE = 9, 16


def card(text: str, start: int) -> Span | None:
    """Return the span of the first card number that begins at or after `start`."""
    for first in _groups(text, start):
        found = max((end for end in _card_ends(text, first)), default=None)
        if found is not None:
            return first[0], found
    return None


def _card_ends(text: str, first: Span) -> Iterator[int]:
    """Yield every position where a card that begins with this group of digits may end."""
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
    """True if plain digits are a card number."""
    issued = any(low <= digits[: len(low)] <= high and len(digits) in sizes for low, high, sizes in ISSUERS)
    return issued and luhn(digits)


def luhn(digits: str) -> bool:
    """True if the last digit is the check digit of the others. Source: ISO/IEC 7812-1 annex B."""
    doubled = (int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def luhn_digit(digits: str) -> str:
    """Return the check digit that makes a card number valid."""
    return next(digit for digit in "0123456789" if luhn(digits + digit))


def _groups(text: str, start: int) -> Iterator[Span]:
    """Yield whole runs of digits that begin at or after `start`."""
    while (match := _DIGITS.search(text, start)) is not None:
        begin, start = match.span()
        if begin == 0 or not text[begin - 1].isdecimal():
            yield begin, start


def _next_group(text: str, end: int) -> Span | None:
    """Return the digits that follow `end` after one or two separators."""
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


def iban(text: str, start: int) -> Span | None:
    """Return an IBAN's span: known country and length, 1 modulo 97; single spaces or hyphens may separate
    it."""
    while (match := IBAN.search(text, start)) is not None:
        begin, start = match.start(), match.start() + 1
        end = _iban_end(text, begin)
        if end is not None:
            return begin, end
    return None


def _iban_end(text: str, begin: int) -> int | None:
    length, number, at = COUNTRIES.get(text[begin : begin + 2].upper(), 0), "", begin
    while at < len(text) and len(number) < length:
        if text[at].isascii() and text[at].isalnum():
            number += text[at].upper()
        elif text[at] not in " -\n" or text[at - 1] in " -\n":
            return None
        at += 1
    ends = at == len(text) or not text[at].isalnum()
    value = "".join(str(int(c, 36)) for c in number[4:] + number[:4])
    return at if length and len(number) == length and ends and int(value) % 97 == 1 else None


def email(text: str, start: int) -> Span | None:
    """Return the span of an e-mail address."""
    match = EMAIL.search(text, start)
    return match.span() if match else None


def phone(text: str, start: int) -> Span | None:
    """Return the span of a phone number: with its country code, or grouped after an area code."""
    while (match := PHONE.search(text, start)) is not None:
        if MIN_PHONE <= sum(c.isdecimal() for c in match.group()) <= MAX_PHONE:
            span: Span = match.span()
            return span
        start = match.start() + 1
    return None


DETECTORS: Mapping[str, Detector] = {
    "card": Detector(card, CARD_WIDTH),
    "iban": Detector(iban, 2 * max(COUNTRIES.values())),
    "email": Detector(email, 64 + 1 + 4 * 64 + 24),
    "phone": Detector(phone, 3 + 3 + 7 * 8 + 1),
}
