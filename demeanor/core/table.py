"""The nouns of a report: a Section of Tables, Figures and texts, and the Page that holds sections. Nothing is rendered here.

In: what an analysis found, as cells and sentences. Out: frozen values that report/ renders for the terminal, as HTML and as Markdown.
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
    """A piece of a sentence or a cell: what it says, and what it is.

    `strong`: in a table it marks a difference that is shown. `change`: a difference to the column before. `tag`: a count or a verdict.
    `aside`: an explanation that only the page has room for.
    """

    text: str
    style: Literal["", "soft", "aside", "code", "change", "tag"] = ""
    tone: Tone = ""
    strong: bool = False
    hint: str = ""
    """More about it, shown where the reader can point at it."""
    link: str = ""
    """Anchor of the place on the page that it leads to."""
    share: float | None = None
    """The share that a cell of a ladder stands for, which colours it."""


Inline: TypeAlias = str | StyledText | tuple[str | StyledText, ...]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A paragraph; `lead` explains a section (the terminal leaves it out), `note` a table, `calm` says that there is nothing to list."""

    text: Inline
    style: Literal["", "lead", "note", "calm", "heading", "code"] = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list; `losses` are what got worse, of which a `quiet` one is not certain."""

    items: tuple[Inline, ...]
    style: Literal["", "losses"] = ""
    quiet: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values; `conversation` are speakers and what they said."""

    pairs: tuple[tuple[str, Inline], ...]
    style: Literal["facts", "conversation"] = "facts"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns; `text` are the columns of words, the others hold numbers. `heat`: a ladder, colored by its shares."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Inline, ...], ...]
    title: str = ""
    text: tuple[int, ...] = (0,)
    heat: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart for the page: a function of report/figures.py with its data, a caption, and a key of (color class, meaning)."""

    kind: str
    data: Mapping[str, Any]
    title: str = ""
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Fold:
    """Blocks behind a summary that the reader opens; rendered open where nothing can be folded."""

    summary: Inline
    blocks: tuple[Block, ...]
    anchor: str = ""
    tone: Tone = ""
    item: bool = False
    """One of many in a list."""


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """Blocks that belong together: `two` or `three` side by side, `steps` below each other."""

    blocks: tuple[Block, ...]
    style: Literal["two", "three", "steps"]
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class OnlyFor:
    """Blocks for some renderings only."""

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
    verdict: tuple[Tone, str, str] | None = None
    """A decision to state at the top of the page: its tone, the decision, the reason."""


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report: what is said first, reasons for doubt, the sections, and where it comes from."""

    title: str
    about: str
    headline: str
    sections: tuple[Section, ...]
    gains: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()
    source: str = ""


def tone_of(value: float | None, *, shown: bool) -> Tone:
    """The colour of a difference: `up` or `down` only where it is shown."""
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
    """A difference in points with its interval; strong where it is shown."""
    if value is None:
        return points(None)
    bounds = "" if low is None or high is None else f" ({interval(low, high, bound_places)})"
    return StyledText(points(value, places), strong=shown), StyledText(bounds, "soft")


def plain(text: Inline) -> str:
    """The words alone, a star where they are strong."""
    parts = text if isinstance(text, tuple) else (text,)
    return "".join(x if isinstance(x, str) else f"{x.text}{'*' if x.strong else ''}" for x in parts)
