"""Detectors of personal data: card numbers, IBANs, e-mail and IP addresses, phone and social security numbers.

In: text and a position. Out: the spans of all hits that begin from there on, in order. Time is linear in the
text. A hit depends only on its characters and its neighbours: `width` characters from its begin on, and
`BEHIND` before it. Digits of every script count. Next to further numbers only the usual groupings of a card
count, so a list of numbers is seldom a hit.
"""

from __future__ import annotations

import ipaddress
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import TypeAlias

import re2

from demeanor.core import phone_numbers
from demeanor.core.long_text import plain_digits, scan
from demeanor.core.phone_numbers import BEHIND, Span

Find: TypeAlias = Callable[[str, int], Iterator[Span]]


@dataclass(frozen=True, slots=True)
class Detector:
    """How to find one kind of personal data; `width` is its longest span including the neighbours it
    depends on."""

    find: Find
    width: int


# ---- payment cards ----

SEPARATORS = frozenset(" \t\r\n._/-\u2010\u2011\u2012\u2013\u2014\u2015\u2212")
_DIGITS = re.compile(r"\d+")
_RANGES = """
1 15; 4 13 16 19; 51-55 16; 2221-2720 16; 34 15; 37 15; 1800 15; 2131 15; 35 16-19; 300-305 14-19;
309 14-19; 36 14-19; 38-39 14-19; 60 16-19; 64 16-19; 65 16-19; 62 16-19; 81-82 16-19; 2200-2205 16-19;
5018 12-19; 5020 12-19; 5038 12-19; 56-58 12-19; 6304 12-19; 6390 12-19; 6759 12-19; 6761-6763 12-19;
0604 12-19; 50 13-19; 63 16-19; 67 13-19; 9704 16 19; 9792 16; 9860 16; 8600 16; 1946 16
"""
# Leading digits (from, to) and lengths of card numbers. Source: ISO/IEC 7812 ranges published by the schemes:
# UATP, Visa, Mastercard, American Express, JCB, Diners, Discover, UnionPay, RuPay, Mir, Maestro (from 12
# digits on in its own ranges), Elo, Verve, Napas, Troy, Humo, Uzcard, GPN.


def _range(line: str) -> tuple[str, str, frozenset[int]]:
    leading, *lengths = line.split()
    low, _, high = leading.partition("-")
    ends = [length.partition("-") for length in lengths]
    return low, high or low, frozenset(n for a, _, b in ends for n in range(int(a), int(b or a) + 1))


ISSUERS = tuple(_range(line) for line in _RANGES.split(";"))
LAYOUTS = ((4, 6, 5), (4, 6, 4))
MIN_DIGITS, MAX_DIGITS = 12, 19
MAX_GAP, MAX_USUAL_GAP = 2, 6  # characters between groups: of any sizes, and of a usual layout
CARD_WIDTH = MAX_DIGITS + MAX_GAP * MAX_DIGITS + MAX_USUAL_GAP + 1


def card(text: str, start: int) -> Iterator[Span]:
    """Yield the spans of card numbers that begin at or after `start`."""
    runs, groups = _groups(text, start), deque[Span]()
    while True:
        groups.extend(islice(runs, MAX_DIGITS + 1 - len(groups)))
        if not groups:
            return
        last = _card_end(text, groups)
        if last is not None:
            yield groups[0][0], groups[last][1]
        for _ in range(1 if last is None else last + 1):
            groups.popleft()


def _groups(text: str, start: int) -> Iterator[Span]:
    """Yield whole runs of digits that begin at or after `start`."""
    for match in scan(_DIGITS, text, start):
        if match.start() > start or start == 0 or not text[start - 1].isdecimal():
            yield match.span()


def _card_end(text: str, groups: Sequence[Span]) -> int | None:
    """Return the last group of the longest card number that begins with the first group."""
    begin, end = groups[0]
    free = not _follows(text, begin)
    if not (free or end - begin == 4 or end - begin >= MIN_DIGITS):
        return None
    if end - begin >= MIN_DIGITS and _INSIDE.search(text, max(0, begin - BEHIND), begin) is not None:
        return None
    digits, sizes, gaps, found = "", list[int](), set[str](), None
    for last in range(len(groups)):
        begin, end = groups[last]
        if len(digits) + end - begin > MAX_DIGITS:
            break
        if last > 0:
            gaps.add(text[groups[last - 1][1] : begin])
            if len(gap := text[groups[last - 1][1] : begin]) > MAX_USUAL_GAP or any(map(str.isalnum, gap)):
                break
        digits += plain_digits(text[begin:end])
        sizes.append(end - begin)
        if len(digits) < MIN_DIGITS:
            continue
        if _is_usual(sizes):
            grouped = len(gaps) < 2 or all(map(SEPARATORS.issuperset, gaps))
        else:
            near = len(gaps) == 1 and len(min(gaps)) <= MAX_GAP and SEPARATORS.issuperset(min(gaps))
            grouped = free and near and not _goes_on(text, groups, last)
        if grouped and is_card(digits):
            found = last
    return found


# Before a run of digits that is part of something else: decimals, or letters and digits in one word.
_INSIDE = re.compile(r"(?:\d[.,]|\d[^\W\d_]{1,12})\Z")


def _is_usual(sizes: Sequence[int]) -> bool:
    """True for one run of digits, groups of four with a shorter last one, and the layouts of 14 and 15
    digits."""
    return len(sizes) == 1 or tuple(sizes) in LAYOUTS or (set(sizes[:-1]) == {4} and sizes[-1] <= 4)


def _follows(text: str, begin: int) -> bool:
    """True if other digits stand before, parted by one or two separators."""
    at = begin - 1
    while at >= 0 and begin - at <= MAX_GAP and text[at] in SEPARATORS:
        at -= 1
    return 0 <= at < begin - 1 and text[at].isdecimal()


def _goes_on(text: str, groups: Sequence[Span], last: int) -> bool:
    if last + 1 == len(groups):
        return False
    gap = text[groups[last][1] : groups[last + 1][0]]
    return len(gap) <= MAX_GAP and SEPARATORS.issuperset(gap)


def is_card(digits: str) -> bool:
    """True if plain digits are a card number: an issuer's leading digits, its length, and Luhn."""
    return luhn(digits) and any(
        low <= digits[: len(low)] <= high and len(digits) in sizes for low, high, sizes in ISSUERS
    )


_DOUBLED = str.maketrans("0123456789", "0246813579")


def luhn(digits: str) -> bool:
    """True if the last digit is the check digit of the others. Source: ISO/IEC 7812-1 annex B."""
    return (sum(map(int, digits[::-2])) + sum(map(int, digits[-2::-2].translate(_DOUBLED)))) % 10 == 0


def luhn_digit(digits: str) -> str:
    """Return the check digit that makes a card number valid."""
    return next(digit for digit in "0123456789" if luhn(digits + digit))


# ---- bank accounts ----

# What follows country and check digits: n digits, a letters, c both. Source: SWIFT IBAN registry.
_ACCOUNTS = """
AD8n12c AE19n AL8n16c AT16n AZ4a20c BA16n BE12n BG4a6n8c BH4a14c BI23n BR23n1a1c BY4c4n16c CH5n12c CR18n
CY8n16c CZ20n DE18n DJ23n DK14n DO4c20n EE16n EG25n ES20n FI14n FK2a12n FO14n FR10n11c2n GB4a14n GE2a16n
GI4a15c GL14n GR7n16c GT24c HN4a20n HR17n HU24n IE4a14n IL19n IQ4a15n IS22n IT1a10n12c JO4a4n18c KW4a22c
KZ3n13c LB4n20c LC4a24c LI5n12c LT16n LU3n13c LV4a13c LY21n MC10n11c2n MD20c ME18n MK3n10c2n MN16n MR23n
MT4a5n18c MU4a19n3a NI4a20n NL4a10n NO11n OM3n16c PK4a16c PL24n PS4a21c PT21n QA4a21c RO4a16c RS18n
RU14n15c SA2n18c SC4a20n3a SD14n SE20n SI15n SK20n SM1a10n12c SO19n ST21n SV4a20n TL19n TN20n TR6n16c
UA6n19c VA18n VG4a16n XK16n YE4a4n18c
"""
_CLASSES = {"n": "[0-9]", "a": "[A-Z]", "c": "[0-9A-Z]"}


def _account(code: str) -> tuple[int, re.Pattern[str]]:
    parts = [(int(count), kind) for count, kind in re.findall(r"(\d+)([nac])", code[2:])]
    pattern = "[A-Z]{2}[0-9]{2}" + "".join(f"{_CLASSES[kind]}{{{count}}}" for count, kind in parts)
    return 4 + sum(count for count, _ in parts), re.compile(pattern)


ACCOUNTS: Mapping[str, tuple[int, re.Pattern[str]]] = {code[:2]: _account(code) for code in _ACCOUNTS.split()}
_COUNTRY = re.compile(r"(?<![^\W_])([A-Za-z]{2})[\W_]{0,3}\d[\W_]{0,3}\d")
MAX_IBAN_GAP = 3
_GAP = re.compile(rf"[\W_]{{0,{MAX_IBAN_GAP}}}")


def iban(text: str, start: int) -> Iterator[Span]:
    """Yield the spans of IBANs: the country's length and form, 1 modulo 97; up to 3 characters may separate
    its parts."""
    at = start
    for match in scan(_COUNTRY, text, start):
        end = _iban_end(text, match.start()) if match.start() >= at else None
        if end is not None:
            yield match.start(), end
            at = end


def _iban_end(text: str, begin: int) -> int | None:
    length, form = ACCOUNTS.get(text[begin : begin + 2].upper(), (0, _DIGITS))
    number, at = "", begin
    while len(number) < length:
        if at == len(text) or not ((text[at].isascii() and text[at].isalnum()) or text[at].isdecimal()):
            return None
        number += plain_digits(text[at]) if text[at].isdecimal() else text[at].upper()
        at += 1
        if len(number) < length and (gap := _GAP.match(text, at)) is not None:
            at = gap.end()
    if not length or (at < len(text) and text[at].isalnum()) or form.fullmatch(number) is None:
        return None
    value = "".join(str(int(c, 36)) for c in number[4:] + number[:4])
    return at if int(value) % 97 == 1 else None


# ---- addresses ----

MAX_LOCAL, MAX_DOMAIN = 64, 255
_LOCAL = re2.compile(r"[\p{L}\p{M}\p{N}_.%+\-'&=~!#$*?^{|}]*[\p{L}\p{N}_]")  # read backwards from the @
_DOMAIN = re2.compile(
    r"(?i)(?:\r?\n[ \t]*)?(?:[\p{L}\p{N}][\p{L}\p{M}\p{N}\-]*[.\x{3002}])+"
    r"(?:xn--[a-z0-9\-]+|\p{L}[\p{L}\p{M}]{1,23})"
)
FILES = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp"})  # icon@2x.png is a file


def email(text: str, start: int) -> Iterator[Span]:
    """Yield the spans of e-mail addresses, of any alphabet; the line may end behind the @."""
    free, at = start, text.find("@", start)
    while at >= 0:
        local = _LOCAL.match(text[max(free, at - MAX_LOCAL) : at][::-1])
        domain = _DOMAIN.match(text[at + 1 : at + 1 + MAX_DOMAIN]) if local else None
        if local and domain and domain.group().rpartition(".")[2].lower() not in FILES:
            free = at + 1 + domain.end()
            yield at - local.end(), free
        at = text.find("@", max(at + 1, free))


_IP4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?[^\W_])")
_IP6 = re.compile(
    r"(?<![\w:.])(?=[0-9A-Fa-f:]*\d)[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,8}(?:(?:\.\d{1,3}){3})?(?![\w:])"
)


def ip(text: str, start: int) -> Iterator[Span]:
    """Yield the spans of IP addresses, versions 4 and 6; addresses of all zeros are left alone."""
    found = (
        (match.span() for match in scan(pattern, text, start) if _is_address(match.group()))
        for pattern in (_IP4, _IP6)
    )
    yield from merge(*found)


def _is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


# ---- social security numbers of the United States ----

_SSN = re.compile(r"(?<![\w-])(\d{3})([ .\-\u2010-\u2015\u2212])(\d{2})\2(\d{4})(?![\w]|-\d)")
_BARE_SSN = re.compile(
    r"(?i)(?:\bssn|social security(?: (?:number|no\.?|#))?)[\W_]{0,3}(?:is )?(\d{3})(\d{2})(\d{4})\b"
)
ADVERTISED = frozenset({"078051120", "219099999"})  # printed in advertisements, so withdrawn


def ssn(text: str, start: int) -> Iterator[Span]:
    """Yield the spans of social security numbers: grouped, or bare behind their name; never-issued ones are
    left alone. Source: SSA, randomized since 2011."""
    grouped = ((m.span(), m.group(1, 3, 4)) for m in scan(_SSN, text, start))
    named = scan(_BARE_SSN, text, max(0, start - BEHIND))
    bare = (((m.start(1), m.end()), m.group(1, 2, 3)) for m in named if m.start(1) >= start)
    yield from (span for span, parts in merge(grouped, bare) if _is_issued(*map(plain_digits, parts)))


def _is_issued(area: str, group: str, serial: str) -> bool:
    withheld = area in ("000", "666") or area >= "900" or group == "00" or serial == "0000"
    return not withheld and area + group + serial not in ADVERTISED


DETECTORS: Mapping[str, Detector] = {
    "card": Detector(card, CARD_WIDTH),
    "email": Detector(email, MAX_LOCAL + MAX_DOMAIN + 2),
    "iban": Detector(iban, 34 + MAX_IBAN_GAP * 33 + 1),
    "ip": Detector(ip, 64),
    "phone": Detector(phone_numbers.phone, phone_numbers.WIDTH),
    "ssn": Detector(ssn, 16),
}


def masked(text: str) -> str:
    """Return the text with every span of personal data replaced by its kind, such as `[card]`."""
    found = sorted(
        (start, -end, kind) for kind, detector in DETECTORS.items() for start, end in detector.find(text, 0)
    )
    pieces, at = [], 0
    for start, minus_end, kind in found:
        if start >= at:
            pieces += [text[at:start], f"[{kind}]"]
        at = max(at, -minus_end)
    return "".join([*pieces, text[at:]])
