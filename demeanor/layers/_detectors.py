"""Personal data that proves itself: card numbers and IBANs by their check digits, e-mail addresses and phone numbers by form.

In: folded text (`_folding`) and a place. Out: the span of the first hit that begins there or later. Candidates are found in
linear time (RE2). A hit depends on its own characters and its neighbours within `width` only, never on where a search began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import re2

from demeanor.layers import _cards

Span: TypeAlias = tuple[int, int]
Find: TypeAlias = Callable[[str, int], Span | None]


@dataclass(frozen=True, slots=True)
class Detector:
    """How to find one kind of personal data; `width` is its longest span with the neighbours it must see."""

    find: Find
    width: int


_LENGTHS = """
AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27
DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22
IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19
MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31
SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
COUNTRIES: Mapping[str, int] = {code[:2]: int(code[2:]) for code in _LENGTHS.split()}
"""Length of an IBAN by country. Source: SWIFT IBAN registry."""
IBAN = re2.compile(r"(?i)\b[A-Z]{2}[ -]?[0-9]{2}")
EMAIL = re2.compile(r"(?i)[a-z0-9_][a-z0-9._%+\-]{0,63}@(?:[a-z0-9][a-z0-9\-]{0,62}\.){1,4}[a-z]{2,24}")
PHONE = re2.compile(
    r"(?:\+|\b00)[1-9][0-9]{0,2}(?:[ ./-]?\(?[0-9]{1,5}\)?){2,7}\b"  # international
    r"|\(?\b[2-9][0-9]{2}(?:\) ?|[ .-])[2-9][0-9]{2}[ .-][0-9]{4}\b"  # North American
    r"|\b0[1-9][0-9]{1,4}[ /-][0-9]{3,8}(?:[ -][0-9]{2,5}){0,3}\b"
)  # trunk prefix 0
MIN_PHONE, MAX_PHONE = 9, 16


def iban(text: str, start: int) -> Span | None:
    """An IBAN: known country, its length, and 1 modulo 97; characters may be separated by single spaces or hyphens."""
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
    """An e-mail address."""
    match = EMAIL.search(text, start)
    return match.span() if match else None


def phone(text: str, start: int) -> Span | None:
    """A phone number as it is written for others: with its country code, or grouped behind an area code."""
    while (match := PHONE.search(text, start)) is not None:
        if MIN_PHONE <= sum(c.isdecimal() for c in match.group()) <= MAX_PHONE:
            span: Span = match.span()
            return span
        start = match.start() + 1
    return None


DETECTORS: Mapping[str, Detector] = {
    "card": Detector(_cards.find, _cards.WIDTH),
    "iban": Detector(iban, 2 * max(COUNTRIES.values())),
    "email": Detector(email, 64 + 1 + 4 * 64 + 24),
    "phone": Detector(phone, 3 + 3 + 7 * 8 + 1),
}
