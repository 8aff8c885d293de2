"""Words and numbers of a text, as every scorer compares them. A number is one token with its sign, decimals, separators and exponent.

In: a text. Out: its words; its tokens, in a form in which equal ones are equal text; its numbers. 1,000 is 1000, 1.0 is 1, ½ is 0.5;
53 is neither -53 nor 53.75 nor 53,999. A unit (%, $, kg) is a word of its own. It refuses to know what is right.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_MINUS = r"\-−–‐‑﹣－"
_APART = "'’ \u00a0\u2009\u202f"
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
_DIGITS = rf"""
    (?<!,)(?<!\d[.'’])\d{{1,3}}(?:(?:(?P<apart>[,{_APART}])\d{{3}}(?:(?P=apart)\d{{3}}){{0,12}}+(?!\d|,\d)(?:\.\d++)?+)  # 1,000.5
        |(?:\.\d{{3}}){{1,12}}+(?:,\d++|(?<=\.\d{{3}}\.\d{{3}})(?![.\d])))                                            # 1.000.000 or 1.000,5
    |\d++(?:\.\d++){{2,}}+                                                                                        # a version, no number
    |(?<![,\[({{])\d++,\d++(?!,\d)                                                                                     # 1,5
    |\d++(?:\.\d++)?+
    |(?<![.\d])\.\d++
"""
_TOKEN = re.compile(
    rf"""(?<![^\W_])(?<![^\W_]_)                                     # no number begins inside a word
    (?:(?<![\w)\]{_MINUS}])(?P<sign>[{_MINUS}+])(?=[$€£¥₹]?\s?[\d.{_VULGAR}]))?+
    (?:(?P<money>[$€£¥₹])\s?)?+
    (?:(?P<digits>{_DIGITS})
        (?:[eE](?P<power>[{_MINUS}+]?\d{{1,4}})(?!\w)
          |\s?(?:[×x*·]|\\times)\s?10(?:\^|\*\*)\{{?(?P<tens>[{_MINUS}+]?\d{{1,4}})\}}?
          |\s?(?P<vulgar>[{_VULGAR}])
          |(?<!/\d)(?<!/\d\d)(?<!/\d{{4}})(?:\ (?P<over>\d{{1,15}}))?[/⁄](?P<under>\d{{1,15}})(?![\d/])
        )?+
      |(?P<alone>[{_VULGAR}]))
    (?:\s?(?P<percent>[%％٪﹪]|per\ ?cent\b)|(?P<suffix>[^\W\d_][^\W_]*+|[²³¹][^\W_]*+))?+
    (?!_[^\W_])
  | (?P<coin>[$€£¥₹])
  | (?P<grade>(?<![^\W_])[^\W\d_][-−](?!\w))
  | (?P<word>[^\W_]+(?:['’][^\W_]+|(?<=\d)\.\d+)*(?:\+\+|[+#](?![\w+#]))?)
    """,
    re.VERBOSE,
)
_SCRIPT = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Signs of scripts that put no space between words, or join particles to them: each is a token."""
_UNITS = frozenset(
    [
        "m",
        "g",
        "s",
        "h",
        "l",
        "x",
        "nm",
        "mm",
        "cm",
        "km",
        "mg",
        "kg",
        "ml",
        "cl",
        "dl",
        "ns",
        "ms",
        "min",
        "mins",
        "hr",
        "hrs",
        "kb",
        "mb",
        "gb",
        "tb",
        "kw",
        "kwh",
        "mw",
        "hz",
        "khz",
        "mhz",
        "ghz",
        "pa",
        "kpa",
        "bar",
        "mph",
        "kmh",
        "kph",
        "ft",
        "in",
        "lb",
        "lbs",
        "oz",
        "yd",
        "mi",
        "px",
        "pt",
        "mol",
        "usd",
        "eur",
        "gbp",
    ]
)
"""What may be joined to a number: `5kg` is `5 kg`, while `2nd` and `3D` are words."""


class Token(NamedTuple):
    """A word or a number (equal tokens have equal text), and where it stands in the `plain` text."""

    text: str
    value: Decimal | None
    span: tuple[int, int]


def words(text: str) -> list[str]:
    """The words of a text in order, lower-cased: what is counted."""
    return [w.replace("’", "'") for w in _WORD.findall(text.lower())]


def contains(text: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` stands in `text` as whole words in a row."""
    size, sought = len(wanted), list(wanted)
    return bool(sought) and any(
        text[i] == sought[0] and list(text[i : i + size]) == sought for i in range(len(text) - size + 1)
    )


def plain(text: str) -> str:
    """The text in composed form without signs that nobody sees."""
    return unicodedata.normalize("NFC", text.translate(_INVISIBLE))


def tokens(text: str) -> list[str]:
    """The words and numbers of a text: what is compared."""
    return [token.text for token in read(text)]


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text; `50%` is 50, `2nd` is 2, `A-12` is 12 and `A12` is none."""
    return [token.value for token in read(text) if token.value is not None]


def number_alone(text: str) -> Decimal | None:
    """The number that is the whole text, in digits; None where it is anything else."""
    found = _TOKEN.fullmatch(plain(text).strip().removesuffix("."))
    if not found or found["money"] or found["percent"] or found["suffix"]:
        return None
    return next((token.value for token in _tokens(found)), None)


def says(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text: as whole words, a possessive's too; a phrase without letters and digits, as it is."""
    wanted = tokens(phrase)
    if not wanted:
        return bool(phrase.strip()) and plain(phrase).strip() in plain(text)
    said = tokens(text)
    return contains(said, wanted) or contains([w.removesuffix("'s") for w in said], wanted)


def alike(first: str, second: str) -> bool:
    """Whether two texts say the same words and numbers; texts without any must be the same signs."""
    a, b = tokens(first), tokens(second)
    return a == b if a or b else plain(first).strip() == plain(second).strip()


def read(text: str) -> Iterator[Token]:
    """The tokens of a text in order."""
    for found in _TOKEN.finditer(plain(text)):
        yield from _tokens(found)


def _tokens(found: re.Match[str]) -> Iterator[Token]:
    """The tokens of one match: signs of a script, or a number with its currency or unit."""
    digits, suffix, span = found["digits"], found["suffix"] or "", found.span()
    if digits is None and found["alone"] is None:
        yield from (
            Token(part, None, span) for part in _parts(found["coin"] or found["grade"] or found["word"])
        )
        return
    value = None if re.search(r"\d", suffix) else _value(found)
    is_unit = (
        suffix in _UNITS or (len(suffix) > 1 and suffix.lower() in _UNITS) or bool(_SCRIPT.match(suffix))
    )
    if value is None or (suffix and not is_unit):
        yield Token("".join(_parts(found[0])), value, span)
        return
    minus = "-" if value < 0 else ""
    is_code = digits is not None and digits.isdecimal() and len(digits) > 1 and int(digits[0]) == 0
    same = minus + digits if is_code else _form(value)
    yield Token(f"={same}", value, span)
    units = (*_parts(suffix), *("%" if found["percent"] else ()), *(found["money"] or ()))
    yield from (Token(unit, None, span) for unit in units)


def _parts(word: str) -> list[str]:
    """A word in lower case and one form; of a script without spaces, its signs."""
    folded = unicodedata.normalize("NFKC", word).casefold().replace("’", "'").replace("−", "-")
    return _SCRIPT.sub(lambda sign: f" {sign[0]} ", folded).split()


def _value(found: re.Match[str]) -> Decimal | None:
    """The number of a match; None for a version or a date with dots."""
    digits = found["digits"] or "0"
    if found["apart"]:
        digits = re.sub(f"[,{_APART}]", "", digits)
    elif "," in digits:
        digits = digits.replace(".", "").replace(",", ".")
    elif digits.count(".") > 1:
        if not re.fullmatch(r"\d{1,3}(?:\.\d{3})+", digits):
            return None
        digits = digits.replace(".", "")
    value = Decimal(digits)
    if power := found["power"] or found["tens"]:
        value = value.scaleb(int(re.sub(f"[{_MINUS}]", "-", power)))
    elif vulgar := found["vulgar"] or found["alone"]:
        value += Decimal(repr(round(unicodedata.numeric(vulgar), 15)))
    elif found["under"] and int(found["under"]) and len(digits) <= 15:
        over = found["over"]
        value = Decimal(repr((float(value) if over else 0.0) + float(over or value) / int(found["under"])))
    return -value if found["sign"] and found["sign"] != "+" else value


def _form(value: Decimal) -> str:
    """A number as text that all its spellings share."""
    sign, digits, power = value.as_tuple()
    said = "".join(map(str, digits)).lstrip("0")
    kept = said.rstrip("0")
    return f"{'-' * sign}{kept}e{int(power) + len(said) - len(kept)}" if kept else "0"


def parsed(text: str) -> Any:
    """The JSON value that a text is; None where it is none: NaN and Infinity are not JSON."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def same(found: Any, wanted: Any) -> bool:
    """Whether a JSON value is the wanted one: text by its words and numbers, numbers by value, lists in order; null and true are no text."""
    if isinstance(wanted, str):
        return isinstance(found, str) and alike(found, wanted)
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and set(found) == set(wanted)
            and all(same(found[x], wanted[x]) for x in wanted)
        )
    return isinstance(found, bool) == isinstance(wanted, bool) and bool(found == wanted)
