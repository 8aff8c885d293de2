"""The elements of a report (Page, Section, Table, Figure, text) and how numbers are written in it.

In: results of an analysis, as cells and sentences. Out: frozen values that report/ renders for the
terminal, as HTML and as Markdown. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

MINUS = "−"
NONE = "–"  # shown where a number is missing
# Control characters, bidirectional overrides and lone surrogates: first and last of each range.
INVISIBLE = (
    ("\0", "\x1f"),
    ("\x7f", "\x9f"),
    ("\u202a", "\u202e"),
    ("\u2066", "\u2069"),
    ("\ud800", "\udfff"),
)


def percent(value: float | None, places: int = 0) -> str:
    """A share in per cent; a whole number is never rounded to 0 or 100 unless it is: 0.997 is '>99'."""
    if value is None:
        return NONE
    if places == 0 and 0.995 <= value < 1:
        return ">99"
    return "<1" if places == 0 and 0 < value <= 0.005 else number(100 * value, places)


def points(value: float | None, places: int = 0) -> str:
    """Return a difference of shares in percentage points with its sign; one that rounds to zero has no
    sign."""
    if value is None:
        return NONE
    rounded = round(100 * value, places)
    return f"+{rounded:.{places}f}" if rounded > 0 else number(rounded, places)


def number(value: float, places: int = 2) -> str:
    """Return a number with a true minus sign; one that rounds to zero has no sign."""
    return f"{value:z.{places}f}".replace("-", MINUS)


def interval(low: float | None, high: float | None, places: int = 0) -> str:
    """Return the interval of a difference in points: `+3 to +14`."""
    if low is None or high is None:
        return "no interval"
    return f"{_bound(low, places)} to {_bound(high, places)}"


def size(value: float, low: float | None, high: float | None) -> str:
    """Return the size of a difference in points without its sign: `10 points (interval 1 to 19)`."""
    text = f"{100 * abs(value):.0f} points"
    if low is None or high is None:
        return text
    if low <= 0 <= high or value == 0:
        return f"{text} (interval {interval(low, high)})"
    nearest, furthest = sorted((abs(low), abs(high)))
    return f"{text} (interval {interval(nearest, furthest)})".replace("+", "")


def _bound(value: float, places: int) -> str:
    """Return a bound in points; with one decimal and its sign if rounding would make it zero."""
    if value != 0 and round(100 * value, places) == 0:
        return f"{'+' if value > 0 else MINUS}{abs(100 * value):.1f}"
    return points(value, places)


def share(value: float | None, low: float | None, high: float | None, places: int = 0) -> str:
    """A share with its interval: `89% (80 to 95)`."""
    if value is None:
        return "not measured"
    bounds = "" if low is None or high is None else f" ({percent(low, places)} to {percent(high, places)})"
    return f"{percent(value, places)}%{bounds or ', no interval (one cluster)'}"


def estimate(value: float | None, low: float | None, high: float | None, places: int = 2) -> str:
    """Return a number with its interval, if it has one: `1.98 (0.90 or more)` where one end is open."""
    if value is None:
        return NONE
    if low is None and high is None:
        return number(value, places)
    if high is None or low is None:
        ends = [f"{number(low, places)} or more"] if low is not None else []
        ends += [f"{number(high, places)} or less"] if high is not None else []
        return f"{number(value, places)} ({ends[0]})"
    return f"{number(value, places)} ({number(low, places)} to {number(high, places)})"


def p_value(p: float | None) -> str:
    """Return a p-value with three decimals; a small one is never printed as zero."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: `1 item`, `1,200 items`."""
    return f"{count:,} {noun if count == 1 else noun + 's'}"


def listed(parts: Sequence[str]) -> str:
    """Return a list as text: `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def first_of(names: Sequence[str], most: int) -> str:
    """Return the first names and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def axis_name(name: str) -> str:
    """Return the name of a behavior (axis) for display."""
    return name.replace("_", " ")


def visible(text: str) -> str:
    """Replace control characters (invalid in HTML, may reverse the reading order) by their code points."""
    return "".join(f"\\u{ord(c):04x}" if _invisible(c) else c for c in text)


def _invisible(c: str) -> bool:
    return c not in "\n\t" and any(first <= c <= last for first, last in INVISIBLE)


Tone: TypeAlias = Literal["", "up", "down", "flat"]
Output: TypeAlias = Literal["screen", "paper", "markdown", "terminal"]
SCREEN: tuple[Output, ...] = ("screen",)
PAPER: tuple[Output, ...] = ("paper",)
PAGE: tuple[Output, ...] = (*SCREEN, *PAPER)
"""The HTML page, on a screen and printed."""
WRITTEN: tuple[Output, ...] = (*PAGE, "markdown")
TERMINAL: tuple[Output, ...] = ("terminal",)
NOT_SCREEN: tuple[Output, ...] = (*PAPER, "markdown", "terminal")


@dataclass(frozen=True, slots=True)
class StyledText:
    """A piece of a sentence or a cell, with its style.

    `strong` marks a significant difference in a table. `change`: a difference to the column before. `tag`: a
    count or a verdict. `aside`: an explanation for the page only.
    """

    text: str
    style: Literal["", "soft", "aside", "code", "change", "tag"] = ""
    tone: Tone = ""
    strong: bool = False
    hint: str = ""  # more about it, shown as a tooltip
    link: str = ""  # anchor on the page
    share: float | None = None  # share of a ladder's cell, which sets its color


Inline: TypeAlias = str | StyledText | tuple[str | StyledText, ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; `lead` explains a section (not in the terminal), `note` a table, `calm` an empty list."""

    text: Inline
    style: Literal["", "lead", "note", "calm", "heading", "code"] = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list; `losses` are regressions, and an item in `quiet` is an uncertain one."""

    items: tuple[Inline, ...]
    style: Literal["", "losses"] = ""
    quiet: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values; in a `conversation`, speakers and their texts."""

    pairs: tuple[tuple[str, Inline], ...]
    style: Literal["facts", "conversation"] = "facts"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; `text` are the columns of words, the others hold numbers; `heat` colors by
    share."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Inline, ...], ...]
    title: str = ""
    text: tuple[int, ...] = (0,)
    heat: bool = False

    def __str__(self) -> str:
        """The table as aligned plain text, without explanations."""
        lines = [self.columns, *(tuple(plain(_short(cell)) for cell in row) for row in self.rows)]
        widths = [max(len(line[n]) for line in lines if n < len(line)) for n in range(len(self.columns))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if n in self.text else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(line, widths))
            ).rstrip()
            for line in lines
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart: a function of report/figures.py with its data, caption, and legend of (color class,
    meaning)."""

    kind: str
    data: Mapping[str, Any]
    title: str = ""
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks under a summary that the reader can open; rendered open where folding is impossible."""

    summary: Inline
    blocks: tuple[Block, ...]
    anchor: str = ""
    tone: Tone = ""
    item: bool = False  # one of many in a list


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Related blocks: `two` or `three` side by side, `steps` below each other."""

    blocks: tuple[Block, ...]
    style: Literal["two", "three", "steps"]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OnlyFor:
    """Blocks for some outputs only."""

    outputs: tuple[Output, ...]
    blocks: tuple[Block, ...]


Block: TypeAlias = Paragraph | Bullets | Facts | Table | Figure | Fold | BlockGroup | OnlyFor


@dataclass(frozen=True, slots=True)
class Section:
    """A titled part of a report; `name` is its short title in the navigation."""

    anchor: str
    name: str
    title: str
    blocks: tuple[Block, ...]
    verdict: tuple[Tone, str, str] | None = None  # shown at the top of the page: tone, decision, reason


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report: headline, gains and losses, caveats, sections, and its source."""

    title: str
    about: str
    headline: str
    sections: tuple[Section, ...]
    gains: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    source: str = ""


def tone_of(value: float | None, *, shown: bool) -> Tone:
    """Return the color of a difference: `up` or `down` only if it is significant."""
    if not shown or value is None:
        return "flat"
    return "up" if value > 0 else "down"


def difference(
    value: float | None,
    low: float | None,
    high: float | None,
    *,
    shown: bool = False,
    places: int = 1,
    bound_places: int = 0,
) -> Inline:
    """Return a difference in points with its interval; strong if it is significant."""
    if value is None:
        return points(None)
    bounds = "" if low is None or high is None else f" ({interval(low, high, bound_places)})"
    return StyledText(points(value, places), strong=shown), StyledText(bounds, "soft")


def _short(text: Inline) -> Inline:
    """Return a cell without its asides, a space before a change."""
    parts = text if isinstance(text, tuple) else (text,)
    kept = [part for part in parts if isinstance(part, str) or part.style != "aside"]
    return tuple(
        replace(part, text=f" {part.text}")
        if isinstance(part, StyledText) and part.style == "change"
        else part
        for part in kept
    )


def plain(text: Inline) -> str:
    """The words alone, a star where they are strong."""
    parts = text if isinstance(text, tuple) else (text,)
    return "".join(x if isinstance(x, str) else f"{x.text}{'*' if x.strong else ''}" for x in parts)
