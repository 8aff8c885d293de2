"""The elements of a report: a Page of Sections with Tables, Figures and texts.

In: results of an analysis, as cells and sentences. Out: frozen values that report/ renders for the terminal,
as HTML and as Markdown. Renders nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from demeanor.core.formatting import interval, points

Tone: TypeAlias = Literal["", "up", "down", "flat"]
Output: TypeAlias = Literal["page", "markdown", "terminal"]
PAGE: tuple[Output, ...] = ("page",)
WRITTEN: tuple[Output, ...] = ("page", "markdown")
TERMINAL: tuple[Output, ...] = ("terminal",)
NOT_PAGE: tuple[Output, ...] = ("markdown", "terminal")


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


def plain(text: Inline) -> str:
    """The words alone, a star where they are strong."""
    parts = text if isinstance(text, tuple) else (text,)
    return "".join(x if isinstance(x, str) else f"{x.text}{'*' if x.strong else ''}" for x in parts)
