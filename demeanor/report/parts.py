"""The building blocks of the page: section, lead, note, legend, table, fold, facts.

In: text and markup. Out: markup with this page's classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from demeanor.report.markup import Child, Html, el


def section(anchor: str, title: str, *children: Child) -> Html:
    """A titled part of the page that `#anchor` leads to."""
    return el("section", el("h2", title), *children, id=anchor)


def lead(words: str) -> Html:
    return el("p", words, class_="lead")


def note(words: str) -> Html:
    return el("p", words, class_="note")


def wide(content: Html) -> Html:
    """Something that may be broader than the screen and then scrolls by itself."""
    return el("div", content, class_="scroll")


def fold(
    summary: Child,
    *children: Child,
    id_: str | None = None,
    class_: str | None = None,
    mark: str | None = None,
) -> Html:
    """Content behind a summary; `mark` colours the triangle."""
    return el("details", el("summary", summary, class_=mark), *children, id=id_, class_=class_)


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """Keys: (class of the swatch, what it means)."""
    return el(
        "ul", *(el("li", el("i", class_=swatch), meaning) for swatch, meaning in entries), class_="legend"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Child]], class_: str | None = None) -> Html:
    """A table whose first column is a heading and whose others are figures, right-aligned."""
    head = el(
        "tr", *(el("th", name, class_="number" if n else None, scope="col") for n, name in enumerate(columns))
    )
    body = [
        el("tr", el("th", row[0], scope="row"), *(el("td", cell, class_="number") for cell in row[1:]))
        for row in rows
    ]
    return el("table", el("thead", head), el("tbody", *body), class_=class_)


def facts(pairs: Iterable[tuple[Child, Child]], class_: str = "facts") -> Html:
    """Names and values side by side."""
    return el("dl", *((el("dt", name), el("dd", value)) for name, value in pairs), class_=class_)
