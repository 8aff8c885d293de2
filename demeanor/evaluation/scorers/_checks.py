"""The verifiable checks of the `checks` scorer: each is one question to a text, with the settings it reads.

In: a text and settings. Out: whether it holds. Words are compared whole, without case and punctuation; counts lie between `low` and `high`
(either may be left out). It refuses to know modes, items and scores.
"""

from __future__ import annotations

import bisect
import csv
import datetime
import io
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from demeanor.core.language import likeliest_language
from demeanor.evaluation.scorers._sentences import sentences
from demeanor.evaluation.scorers._words import (
    alike,
    number_alone,
    numbers,
    parsed,
    same,
    says,
    tokens,
    words,
)

Settings = Mapping[str, Any]
Check = Callable[[str, Settings], bool]

_BULLET = re.compile(
    r"^[^\S\n]*[-*•]\s+(\S.*)$", re.MULTILINE
)  # no \s*: a thousand blank lines would be read a thousand times
_NUMBERED = re.compile(r"^[^\S\n]*\d+[.)]\s+(\S.*)$", re.MULTILINE)
_FENCE = re.compile(r"```([\w+-]*)[ \t]*")
_PICTURE = (
    "[\U0001f300-\U0001f3fa\U0001f400-\U0001faff☀-➿⌚⌛⏩-⏳⏸-⏺⬛⬜⭐⭕]\ufe0f?[\U0001f3fb-\U0001f3ff]?"
)
_EMOJI = re.compile(
    f"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_PICTURE}(?:\u200d{_PICTURE})*"
)  # one as a reader sees it
JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def within(count: int, k: Settings) -> bool:
    """Whether a count lies between `low` and `high`."""
    low, high = k.get("low"), k.get("high")
    return (low is None or count >= low) and (high is None or count <= high)


def lines(text: str) -> list[str]:
    """The lines that are not empty."""
    return [x.strip() for x in text.splitlines() if x.strip()]


def listed(text: str, style: str = "any") -> list[str]:
    """The items of a list: with bullets, with numbers, or either."""
    kinds = {"bullets": (_BULLET,), "numbers": (_NUMBERED,), "any": (_BULLET, _NUMBERED)}[style]
    return [m.group(1).strip() for kind in kinds for m in kind.finditer(text)]


def entries(text: str) -> list[str]:
    """The items of a list, or the lines where there is none."""
    return listed(text) or lines(text)


def _number(text: str, k: Settings) -> bool:
    found = numbers(text)
    return bool(found) and abs(found[-1] - Decimal(str(k["value"]))) <= Decimal(str(k.get("tolerance", 0)))


def _label(text: str, k: Settings) -> bool:
    named = {x for x in k["labels"] if says(text, x)}
    longer = {
        x for x in named if any(x != y and says(y, x) for y in named)
    }  # "positive" inside "very positive"
    return named - longer == {k["answer"]}


def _in_order(text: str, k: Settings) -> bool:
    said, place = tokens(text), 0
    for phrase in k["words"]:
        wanted = tokens(phrase)
        found = next(
            (i for i in range(place, len(said) - len(wanted) + 1) if said[i : i + len(wanted)] == wanted),
            None,
        )
        if found is None:
            return False
        place = found + len(wanted)
    return True


def _json(text: str, k: Settings) -> bool:
    found = parsed(text)
    if not isinstance(found, dict):
        return False
    if "keys" in k and set(found) != set(k["keys"]):
        return False
    types = k.get("types", {})
    if any(name not in found or not of_type(found[name], kind) for name, kind in types.items()):
        return False
    return all(name in found and same(found[name], value) for name, value in k.get("values", {}).items())


def of_type(value: Any, kind: str) -> bool:
    """Whether a JSON value has a type; a whole float is an integer."""
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, JSON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _json_list(text: str, k: Settings) -> bool:
    found = parsed(text)
    return (
        isinstance(found, list)
        and within(len(found), k)
        and ("values" not in k or same(found, list(k["values"])))
    )


def _csv(text: str, k: Settings) -> bool:
    try:
        rows = [row for row in csv.reader(io.StringIO(text.strip()), strict=True) if row]
    except csv.Error:
        return False
    return _grid(rows, k)


def _grid(rows: list[list[str]], k: Settings) -> bool:
    header = k["columns"]
    return (
        bool(rows)
        and len(rows[0]) == len(header)
        and all(map(alike, rows[0], header))
        and all(len(r) == len(header) for r in rows)
        and within(len(rows) - 1, k)
    )


def _table(text: str, k: Settings) -> bool:
    rows = lines(text)
    if (
        len(rows) < 2
        or not all(r.count("|") >= 1 for r in rows)
        or not re.fullmatch(r"[\s|:-]*-[\s|:-]*", rows[1])
    ):
        return False
    return _grid([[c.strip() for c in r.strip("|").split("|")] for r in (rows[0], *rows[2:])], k)


def _case(text: str, k: Settings) -> bool:
    kind = k["case"]
    if kind != "title":
        return text.isupper() if kind == "upper" else text.islower()
    return all(
        w[0].isupper() or w[0].isdigit() for w in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)
    ) and any(c.isalpha() for c in text)


def fenced(text: str) -> tuple[list[str], str]:
    """The languages of the code blocks, and the text outside of them; a fence that is never closed opens no block."""
    rows = text.split("\n")
    marks = [_FENCE.fullmatch(row) for row in rows]
    ends = [n for n, mark in enumerate(marks) if mark and not mark.group(1)]
    tags, outside, at = list[str](), list[str](), 0
    while at < len(rows):
        mark = marks[at]
        end = bisect.bisect_right(ends, at) if mark else len(ends)
        if mark and end < len(ends):
            tags.append(mark.group(1))
            at = ends[end]
        else:
            outside.append(rows[at])
        at += 1
    return tags, "\n".join(outside)


def _code(text: str, k: Settings) -> bool:
    tags, outside = fenced(text)
    right = all(tag.lower() in k["languages"] for tag in tags) if "languages" in k else True
    return within(len(tags), k) and right and not (k.get("alone", False) and outside.strip())


def _alphabetical(text: str, k: Settings) -> bool:
    found = [x.casefold() for x in entries(text)]
    return (
        within(len(found), k)
        and len(found) > 1
        and found == sorted(found, reverse=bool(k.get("reverse", False)))
    )


def _initials(text: str, k: Settings) -> bool:
    firsts = [next((c for c in line if c.isalpha()), "") for line in lines(text)]
    return "".join(firsts).lower() == str(k["word"]).lower()


def _date(text: str, _: Settings) -> bool:
    text = text.strip().rstrip(".")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return False
    try:
        return bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _value(text: str, k: Settings) -> bool:
    """The whole answer is one number, in digits."""
    return number_alone(text) == Decimal(str(k["value"]))


def _headings(text: str, k: Settings) -> bool:
    found = re.findall(r"^#{1,6}\s+(\S.*)$", text, re.MULTILINE)
    return within(len(found), k) and all(any(says(x, name) for x in found) for name in k.get("names", ()))


def _each(measure: Callable[[str], int]) -> Check:
    return lambda text, k: bool(entries(text)) and all(within(measure(x), k) for x in entries(text))


def _count(measure: Callable[[str], int]) -> Check:
    return lambda text, k: within(measure(text), k)


def _starts(pieces: Callable[[str], Iterable[str]]) -> Check:
    return lambda text, k: (
        bool(list(pieces(text)))
        and all(any(x.lower().startswith(start.lower()) for start in k["any"]) for x in pieces(text))
    )


RANGE = frozenset({"low", "high"})
CHECKS: Mapping[str, tuple[Check, frozenset[str], frozenset[str]]] = {
    "says": (lambda t, k: all(says(t, x) for x in k["words"]), frozenset({"words"}), frozenset()),
    "says_any": (lambda t, k: any(says(t, x) for x in k["words"]), frozenset({"words"}), frozenset()),
    "omits": (lambda t, k: not any(says(t, x) for x in k["words"]), frozenset({"words"}), frozenset()),
    "in_order": (_in_order, frozenset({"words"}), frozenset()),
    "mentions": (
        lambda t, k: within(sum(t.lower().count(x.lower()) for x in k["words"]), k),
        frozenset({"words"}),
        RANGE,
    ),
    "equals": (lambda t, k: any(alike(t, x) for x in k["any"]), frozenset({"any"}), frozenset()),
    "number": (_number, frozenset({"value"}), frozenset({"tolerance"})),
    "value": (_value, frozenset({"value"}), frozenset()),
    "label": (_label, frozenset({"labels", "answer"}), frozenset()),
    "word_count": (_count(lambda t: len(words(t))), frozenset(), RANGE),
    "sentence_count": (_count(lambda t: len(sentences(t))), frozenset(), RANGE),
    "paragraph_count": (
        _count(lambda t: len([x for x in re.split(r"\n\s*\n", t) if x.strip()])),
        frozenset(),
        RANGE,
    ),
    "line_count": (_count(lambda t: len(lines(t))), frozenset(), RANGE),
    "character_count": (_count(lambda t: len(t.strip())), frozenset(), RANGE),
    "list": (
        lambda t, k: (
            within(len(listed(t, k.get("style", "any"))), k)
            and not (k.get("alone", False) and len(listed(t, k.get("style", "any"))) != len(lines(t)))
        ),
        frozenset(),
        RANGE | {"style", "alone"},
    ),
    "each_words": (_each(lambda x: len(words(x))), frozenset(), RANGE),
    "line_characters": (lambda t, k: all(within(len(x), k) for x in lines(t)), frozenset(), RANGE),
    "json": (_json, frozenset(), frozenset({"keys", "types", "values"})),
    "json_list": (_json_list, frozenset(), RANGE | {"values"}),
    "csv": (_csv, frozenset({"columns"}), RANGE),
    "table": (_table, frozenset({"columns"}), RANGE),
    "starts": (_starts(lambda t: [t.strip()]), frozenset({"any"}), frozenset()),
    "lines_start": (_starts(lines), frozenset({"any"}), frozenset()),
    "ends": (
        lambda t, k: any(t.strip().lower().endswith(x.lower()) for x in k["any"]),
        frozenset({"any"}),
        frozenset(),
    ),
    "case": (_case, frozenset({"case"}), frozenset()),
    "avoids_characters": (
        lambda t, k: not any(c.lower() in t.lower() for c in k["characters"]),
        frozenset({"characters"}),
        frozenset(),
    ),
    "only_characters": (
        lambda t, k: bool(t.strip()) and all(c in k["characters"] for c in t.strip()),
        frozenset({"characters"}),
        frozenset(),
    ),
    "quoted": (
        lambda t, _: len(t.strip()) > 2 and t.strip()[0] in '"“' and t.strip()[-1] in '"”',
        frozenset(),
        frozenset(),
    ),
    "question": (lambda t, _: t.strip().endswith("?"), frozenset(), frozenset()),
    "headings": (_headings, frozenset(), RANGE | {"names"}),
    "bold": (_count(lambda t: len(re.findall(r"\*\*[^*\n]+\*\*", t))), frozenset(), RANGE),
    "placeholders": (_count(lambda t: len(re.findall(r"\[[^\[\]\n]+\]", t))), frozenset(), RANGE),
    "emoji": (_count(lambda t: len(_EMOJI.findall(t))), frozenset(), RANGE),
    "code": (_code, frozenset(), RANGE | {"languages", "alone"}),
    "alphabetical": (_alphabetical, frozenset(), RANGE | {"reverse"}),
    "distinct": (
        lambda t, _: len(x := [w.casefold() for w in entries(t)]) == len(set(x)) and bool(x),
        frozenset(),
        frozenset(),
    ),
    "no_word_twice": (
        lambda t, _: bool(words(t)) and len(words(t)) == len(set(words(t))),
        frozenset(),
        frozenset(),
    ),
    "initials": (_initials, frozenset({"word"}), frozenset()),
    "date": (_date, frozenset(), frozenset()),
    "time": (
        lambda t, _: bool(re.fullmatch(r"(?:[01]\d|2[0-3]):[0-5]\d", t.strip().rstrip("."))),
        frozenset(),
        frozenset(),
    ),
    "language": (lambda t, k: likeliest_language(t) == k["language"], frozenset({"language"}), frozenset()),
    "repeats": (
        lambda t, k: tokens(t)[: len(tokens(k["text"]))] == tokens(k["text"]),
        frozenset({"text"}),
        frozenset(),
    ),
    "one_line": (lambda t, _: len(lines(t)) == 1, frozenset(), frozenset()),
    "separated": (
        lambda t, k: within(len([x for x in t.split(k["by"]) if x.strip()]), k),
        frozenset({"by"}),
        RANGE,
    ),
}
"""Kind -> its question, the settings it must have, the settings it may have."""
