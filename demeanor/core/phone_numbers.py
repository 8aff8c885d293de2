"""Phone numbers in text, by the numbering plans of all regions (library phonenumbers).

In: text and a position. Out: the spans of all numbers that begin from there on. A number with its country
code needs a known code and a possible length. One without it needs a form that few other numbers have (a
trunk zero, North American grouping), or a word such as "phone" beside it. The plans are read once and matched
by RE2, so time is linear.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import phonenumbers
import re2
from phonenumbers import PhoneMetadata

from demeanor.core.long_text import plain_digits, scan

Span: TypeAlias = tuple[int, int]

BEHIND = 48  # characters before a hit that decide about it
AFTER = 14
MAX_GROUPS, MAX_GAP, MAX_DIGITS = 7, 3, 15
MIN_NATIONAL, MAX_NATIONAL = 7, 12
WIDTH = MAX_DIGITS + MAX_GAP * MAX_GROUPS + AFTER + MAX_GAP + MAX_DIGITS + 2
_GAP_CHARACTERS = r" \t\r\n./()\-\u2010-\u2015\u2212"
_GROUP = re.compile(r"\d+")
_GAP = re.compile(rf"[{_GAP_CHARACTERS}]{{1,{MAX_GAP}}}")
_LEAD = re.compile(r"[+(]{0,2}\Z")
_EXTENSION = re.compile(r"(?i)(?: ?(?:x|ext\.?) ?|;ext=)\d{1,6}(?!\w)")
_DATE = re.compile(r"(?:19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}(?!\d)|\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)\d\d(?!\d)")
_NAMED = (
    r"(?:tele)?phones?|tel|mobile|cell(?:ular)?|call(?: me)?|fax|text|sms|whatsapp|dial|ring|reach|messages?|"
    r"answering|contact|telefon\w*|handy|mobil\w*|rufnummer|anruf\w*|t[ée]l[ée]phone|portable|tel[ée]fono|m[óo]vil|"
    r"ll[aá]m\w*|cellulare|telefone|celular|telefoon|tlf|телефон\w*|тел"
)
_WORD_BEFORE = re.compile(
    rf"(?i)(?:(?<![^\W\d])(?:{_NAMED})(?![^\W\d])\D{{0,32}}|(?:[电電][话話]|手机|携帯|전화)\D{{0,32}}"
    r"|(?<![^\W\d])(?:office|desk|home|work)[^\w\n]{1,3})\Z"
)
_WORD_AFTER = re.compile(r"(?i)[\s,\-(/]{1,3}(?:office|fax|mobile|cell|phone|tel|home|work)\b")


_JOINED = re.compile(r"-[^\W_]")  # a part of a longer code
_SUM = re.compile(r"\d /|/ \d")


@dataclass(frozen=True, slots=True)
class Plans:
    """The numbering plans: possible lengths by country code, and all valid numbers, with their code or with
    what is dialled before them at home."""

    lengths: Mapping[str, frozenset[int]]
    international: re2._Regexp
    national: re2._Regexp


@cache
def plans() -> Plans:
    """Read the numbering plans of all regions; 0.1 s once."""
    lengths: dict[str, set[int]] = {}
    international, national = set[str](), set[str]()
    for code, regions in phonenumbers.COUNTRY_CODE_TO_REGION_CODE.items():
        for region in regions:
            plan = PhoneMetadata.metadata_for_region_or_calling_code(code, region)
            if plan is None or plan.general_desc is None:
                continue
            lengths.setdefault(str(code), set()).update(plan.general_desc.possible_length)
            lengths[str(code)].update(plan.general_desc.possible_length_local_only)
            pattern = f"(?:{plan.general_desc.national_number_pattern})"
            international.add(f"{code}{pattern}")
            national.add((plan.national_prefix or "") + pattern)
            national.add(pattern)
    return Plans(
        {code: frozenset(n for n in found if n > 0) for code, found in lengths.items()},
        _union(international),
        _union(national),
    )


def _union(patterns: set[str]) -> re2._Regexp:
    options = re2.Options()
    options.max_mem, options.never_capture = 128 << 20, True
    return re2.compile("|".join(sorted(patterns)), options)


def phone(text: str, start: int) -> Iterator[Span]:
    """Yield the spans of phone numbers that begin at or after `start`, extensions included."""
    at = start
    for match in scan(_GROUP, text, start):
        begin, behind = match.span()
        if begin < at or (begin and text[begin - 1].isdecimal()):
            continue
        lead = _LEAD.search(text, max(start, begin - 2), begin)
        first = begin if lead is None else lead.start()
        listed = first == begin and behind - begin not in (1, 3) and text[begin:behind][:2] != "00"
        end = None if listed and _follows_digits(text, first) else _phone_end(text, first, begin)
        if end is not None:
            extension = _EXTENSION.match(text, end)
            at = end if extension is None else extension.end()
            yield first, at


def _phone_end(text: str, first: int, begin: int) -> int | None:
    """Return where a phone number ends whose digits begin at `begin` and whose sign or bracket at `first`."""
    if begin and (text[begin - 1].isalpha() or text[begin - 1] in "@_"):
        return None
    ends, digits, sizes = list[int](), list[str](), list[int]()
    at, goes_on = begin, False
    while (match := _GROUP.match(text, at)) is not None:
        size = match.end() - at
        total = (len(digits[-1]) if digits else 0) + size
        if total > MAX_DIGITS or len(ends) == MAX_GROUPS:
            goes_on = True
            break
        digits.append((digits[-1] if digits else "") + plain_digits(match.group()))
        sizes.append(size)
        ends.append(match.end())
        gap = _GAP.match(text, match.end())
        if gap is None or "+" in text[gap.end() : gap.end() + 1]:
            break
        at = gap.end()
    if not ends:
        return None
    zeros = sizes[0] > 1 and digits[0].startswith("00") and text[max(0, begin - 1) : begin] not in (".", ",")
    if "+" in text[first:begin] or zeros:
        return _international(text, begin, digits, ends, exact="+" not in text[first:begin])
    return _national(text, first, begin, digits, sizes, ends, goes_on)


def _international(text: str, begin: int, digits: list[str], ends: list[int], *, exact: bool) -> int | None:
    """Return the end of the longest valid number with a country code, else of the longest possible one."""
    known, possible = plans(), None
    for number, end in reversed(list(zip(digits, ends))):
        if end < len(text) and text[end].isalpha() and _EXTENSION.match(text, end) is None:
            continue
        number = number[2:] if exact else number
        if "(0)" in text[begin:end]:
            number = _without_trunk(text[begin:end])[2 if exact else 0 :]
        code = next((number[:n] for n in (1, 2, 3) if number[:n] in known.lengths), "")
        if not code or len(number) - len(code) not in known.lengths[code] or len(number) < MIN_NATIONAL:
            continue
        if known.international.fullmatch(number) is not None:
            return end
        possible = possible or end
    return possible


def _without_trunk(text: str) -> str:
    return plain_digits("".join(_GROUP.findall(text.replace("(0)", " ", 1))))


def _national(
    text: str, first: int, begin: int, digits: list[str], sizes: list[int], ends: list[int], goes_on: bool
) -> int | None:
    """Return the end of a number without country code."""
    america = _american(digits, sizes, text[first:begin])
    if america is not None:
        return ends[america]
    if _follows_digits(text, first) or _DATE.match(text, begin) is not None:
        return None
    if sizes == [3, 2, 4] and not goes_on:
        return None  # the form of a social security number
    named = _WORD_BEFORE.search(text, max(0, first - BEHIND), first) is not None
    for i in reversed(range(len(ends))):
        number = digits[i]
        if not MIN_NATIONAL <= len(number) <= MAX_NATIONAL or plans().national.fullmatch(number) is None:
            continue
        if ends[i] < len(text) and text[ends[i]].isalpha() and _EXTENSION.match(text, ends[i]) is None:
            continue
        if _JOINED.match(text, ends[i]) is not None and _WORD_AFTER.match(text, ends[i]) is None:
            continue
        trunk = number[0] == "0" and sizes[0] > 1 and i > 0 and len(number) >= 9
        whole = i == len(ends) - 1 and not goes_on and _SUM.search(text, begin, ends[i]) is None
        if trunk or (whole and (named or _WORD_AFTER.match(text, ends[i]) is not None)):
            return ends[i]
    return None


def _american(digits: list[str], sizes: list[int], lead: str) -> int | None:
    """Return the last group of a North American number (3, 3 and 4 digits, perhaps behind a 1)."""
    at = 1 if sizes[:1] == [1] and digits[0] == "1" else 0
    if sizes[at : at + 3] != [3, 3, 4]:
        return None
    number = digits[at + 2][at:]
    return at + 2 if number[0] >= "2" and number[3] >= "2" else None


def _follows_digits(text: str, first: int) -> bool:
    """True if other digits stand before on the line, parted by a gap."""
    at = first - 1
    while at >= 0 and first - at <= MAX_GAP and text[at] not in "\r\n" and _GAP.match(text[at]) is not None:
        at -= 1
    return 0 <= at < first and text[at].isdecimal()
