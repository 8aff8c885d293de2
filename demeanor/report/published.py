"""A published table of scores as a page, as Markdown and in a terminal: its columns as a ladder, its losses first, and what cannot be told.

In: the tree of a published table, as plain dictionaries. Out: markup and text. No sentence claims a change to be more than noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from demeanor.report.markdown import safe
from demeanor.report.markdown import table as pipes
from demeanor.report.markup import Html, el, join
from demeanor.report.page import document
from demeanor.report.parts import facts, lead, note, section, table, wide
from demeanor.report.words import MINUS, plural

Tree = Mapping[str, Any]
NO_INTERVALS = (
    "No intervals were published: whether a change is more than noise cannot be told from this table."
)
LOSSES, GAINS = 8, 5
"""Changes listed; the table has them all."""


def page(tree: Tree) -> str:
    """The whole page."""
    size = f"{plural(len(_benchmarks(tree)), 'benchmark')}, {plural(len(tree['columns']), 'column')}"
    top = join(
        el("p", f"{tree['title']}: a published table, {size}", class_="eyebrow"),
        el("h1", headline(tree)),
        el("div", *_best(tree), class_="stand"),
    )
    parts = [
        ("ladder", "Columns", _ladder(tree)),
        ("costs", "Losses", _losses(tree)),
        ("gains", "Gains", _gains(tree)),
        ("told", "What could be told", _sizes(tree)),
        ("how", "Method", _how(tree)),
    ]
    return document(
        f"{tree['title']}: what changed",
        top,
        parts,
        [NO_INTERVALS, *tree["notes"]],
        f"{tree['source']}. Page written by demeanor; this file needs no network and runs no script.",
    )


def markdown(tree: Tree) -> str:
    """The same as text."""
    rows = [
        [_name(row), *(_written(row, n) for n in range(len(tree["columns"]))), _count(row), _size(row)]
        for row in tree["rows"]
    ]
    parts = [
        f"# {safe(headline(tree))}",
        safe(f"{tree['title']}. Source: {tree['source']}."),
        *(f"> {safe(x)}" for x in (NO_INTERVALS, *tree["notes"])),
        "## Column by column",
        pipes([f"score, {tree['unit']}", *tree["columns"], "items", "smallest detectable"], rows),
        KEY,
        "## The largest losses",
        "\n".join(f"* {safe(sentence(c))}" for c in lost(tree)) or "No benchmark fell.",
        "## The largest gains",
        "\n".join(f"* {safe(sentence(c))}" for c in gained(tree)) or "No benchmark rose.",
        "## What could have been told",
        "\n".join(f"* {safe(told(row))}" for row in _sized(tree)),
        "## How this was made",
        "\n".join(f"* {safe(line)}" for line in method(tree)),
    ]
    return "\n\n".join(parts) + "\n"


def show(tree: Tree, console: Console) -> None:
    """The headline, the columns as a ladder, losses and gains."""
    console.print()
    console.print(Text(headline(tree), "bold"))
    grid = Table(
        box=None,
        padding=(0, 2, 0, 0),
        title=f"\nscore, {tree['unit']}",
        title_justify="left",
        title_style="dim",
    )
    grid.add_column("", min_width=12)
    for column in tree["columns"]:
        grid.add_column(column, justify="right", no_wrap=True)
    for column in ("n", "detectable"):
        grid.add_column(column, justify="right", style="dim", no_wrap=True)
    for row in tree["rows"]:
        grid.add_row(
            row["name"],
            *(Text(_written(row, n)) for n in range(len(tree["columns"]))),
            _count(row),
            _size(row),
        )
    console.print(grid)
    console.print(Text(KEY, "dim"))
    for title, changes in (("what fell", lost(tree)), ("what rose", gained(tree))):
        console.print(Text(f"\n{title}", "bold"))
        for change in changes:
            console.print(Text(sentence(change)))
    console.print()
    for warning in (NO_INTERVALS, *tree["notes"]):
        console.print(Text.assemble(("! ", "bold yellow"), warning))


# ---- sentences ----

KEY = (
    "Behind a score: its change from the column before, in points. ~: smaller than this many items could have found; ?: the number of "
    "items is not known; without a mark: larger than that, which is still no interval."
)


def headline(tree: Tree) -> str:
    """The benchmark that fell most from its first column to its last, beside the mean score if there is one."""
    falls = sorted((_fall(row), n) for n, row in enumerate(tree["rows"]) if not row["summary"])
    if not falls or falls[0][0] >= 0:
        return f"{tree['title']}: no benchmark ends lower than it began."
    worst = tree["rows"][falls[0][1]]
    full = [row for row in tree["rows"] if row["summary"] and _rises(row)]
    mean = max(full, key=lambda row: sum(v is not None for v in row["values"]), default=None)
    if mean is None:
        return f"{worst['name']} fell: {_path(worst)}."
    return f"{worst['name']} fell, {_path(worst)}, while the average rose, {_path(mean)}: a rule on the mean score ships it."


def _path(row: Mapping[str, Any]) -> str:
    return "\u00a0→ ".join(f"{v:.1f}" for v in row["values"] if v is not None)


def _fall(row: Mapping[str, Any]) -> float:
    known: list[float] = [v for v in row["values"] if v is not None]
    return known[-1] - known[0] if known else 0.0


def _rises(row: Mapping[str, Any]) -> bool:
    moved = [c for c in row["changes"] if c is not None]
    return bool(moved) and all(c > 0 for c in moved)


def lost(tree: Tree) -> list[Mapping[str, Any]]:
    """The largest losses of benchmarks, worst first."""
    return [c for c in tree["changes"] if c["points"] < 0 and not c["summary"]][:LOSSES]


def gained(tree: Tree) -> list[Mapping[str, Any]]:
    """The largest gains of benchmarks, best first."""
    return [c for c in reversed(tree["changes"]) if c["points"] > 0 and not c["summary"]][:GAINS]


def sentence(change: Mapping[str, Any]) -> str:
    """One change with what its number of items allows to say."""
    did = "lowered" if change["points"] < 0 else "raised"
    said = (
        f"{change['column']} {did} {change['row']} from {change['before']:.1f} to {change['after']:.1f} "
        f"({_signed(change['points'])} points). "
    )
    if change["told"] is None:
        return said + "The number of items is not known: nothing can be said of chance."
    if change["told"]:
        return (
            said
            + f"With {change['n']:,} items, a change of {change['detectable']:.1f} points could have been found."
        )
    return (
        said
        + f"With {change['n']:,} items, a change smaller than {change['detectable']:.1f} points could not have been told."
    )


def told(row: Mapping[str, Any]) -> str:
    """What the number of items of a row allows."""
    small = [c for c, t in zip(row["changes"], row["told"]) if t is False]
    moved = sum(c is not None for c in row["changes"])
    count = (
        f"{len(small)} of its {plural(moved, 'change')} {'is' if len(small) == 1 else 'are'} smaller."
        if small
        else (f"None of its {plural(moved, 'change')} is smaller.")
    )
    return f"{row['name']}: with {row['n']:,} items, a change smaller than {row['detectable']:.1f} points could not have been told. {count}"


def method(tree: Tree) -> list[str]:
    """How the sizes were made, and what they are not."""
    return [
        f"Source: {tree['source']}. Nothing was measured here.",
        f"Smallest detectable: the true paired change that so many independent items find {round(100 * tree['power'])} times in 100 at the "
        f"{round(100 * (1 - tree['confidence']))}% level, if {round(100 * tree['discordance'])}% of the items change at all. That share is "
        "assumed: it was not published. D = z √(ψ / (n + z²)), z = 1.96 + 0.84, ψ = the share (Connor 1987).",
        "Items that share a source, more than one draw per item, and another training seed all make the true size larger.",
        "n is named only where it is public knowledge; that the whole set was used is taken for granted.",
        "Rows whose score is graded (not right or wrong) are taken as if they were right or wrong.",
    ]


def _benchmarks(tree: Tree) -> list[Mapping[str, Any]]:
    return [row for row in tree["rows"] if not row["summary"]]


def _sized(tree: Tree) -> list[Mapping[str, Any]]:
    return [row for row in tree["rows"] if row["n"] is not None]


def _signed(points: float) -> str:
    return f"+{points:.1f}" if points > 0 else f"{MINUS}{-points:.1f}" if points < 0 else "0.0"


def _mark(told_: bool | None) -> str:
    return "?" if told_ is None else "" if told_ else "~"


def _written(row: Mapping[str, Any], column: int) -> str:
    value = row["values"][column]
    if value is None:
        return "–"
    change = row["changes"][column - 1] if column else None
    return (
        f"{value:.1f}"
        if change is None
        else f"{value:.1f} ({_signed(change)}{_mark(row['told'][column - 1])})"
    )


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['name']} ({row['note']})" if row["note"] else str(row["name"])


def _count(row: Mapping[str, Any]) -> str:
    return "not known" if row["n"] is None else f"{row['n']:,}"


def _size(row: Mapping[str, Any]) -> str:
    return "–" if row["detectable"] is None else f"{row['detectable']:.1f}"


# ---- sections of the page ----


def _best(tree: Tree) -> list[Html]:
    gains = [el("p", _short(c), class_="gain") for c in gained(tree)[:2]]
    return [*gains, *(el("p", _short(c), class_="loss-note") for c in lost(tree)[:1])]


def _short(change: Mapping[str, Any]) -> str:
    did = "lowered" if change["points"] < 0 else "raised"
    return f"{change['column']} {did} {change['row']} by {abs(change['points']):.1f} points."


def _ladder(tree: Tree) -> Html:
    head = el(
        "tr",
        el("th", f"score, {tree['unit']}"),
        *(el("th", c, scope="col") for c in tree["columns"]),
        el("th", "items", class_="number items", scope="col"),
        el("th", "smallest detectable", class_="number detectable", scope="col"),
    )
    rows = [
        el(
            "tr",
            el(
                "th",
                row["name"],
                el("span", row["note"], class_="soft") if row["note"] else None,
                scope="row",
            ),
            *(_cell(row, n) for n in range(len(tree["columns"]))),
            el("td", _count(row), class_="number soft"),
            el("td", _size(row), class_="number soft"),
        )
        for row in tree["rows"]
    ]
    return section(
        "ladder",
        "Column by column",
        lead(
            "Columns as they were published. Below a score stands its change from the column before, in points. Grey: "
            "smaller than what so many items could have found; with a question mark: the number of items is not known."
        ),
        wide(el("table", el("thead", head), el("tbody", *rows), class_="heat")),
        note(
            f"“Smallest detectable”: in points, if {round(100 * tree['discordance'])}% of the items change between columns (assumed)."
        ),
    )


def _cell(row: Mapping[str, Any], column: int) -> Html:
    value = row["values"][column]
    if value is None:
        return el("td", el("b", "–", class_="soft"))
    change = row["changes"][column - 1] if column else None
    below = Html() if change is None else _change(change, row["told"][column - 1])
    return el("td", el("b", f"{value:.1f}"), below, class_=f"h{round(value / 10)}")


def _change(points: float, told_: bool | None) -> Html:
    if points == 0:
        return el("span", "0.0", class_="change flat")
    tone = "flat" if told_ is False else "up" if points > 0 else "down"
    sure = "" if told_ is not None else " ?"
    return el("span", f"{'▲' if points > 0 else '▼'} {_signed(points)}{sure}", class_=f"change {tone}")


def _losses(tree: Tree) -> Html:
    listed = [el("li", sentence(c), class_="quiet" if c["told"] is False else None) for c in lost(tree)]
    return section(
        "costs",
        "What fell",
        lead("The largest losses from a column to the next, worst first, whatever the mean did."),
        el("ul", *listed, class_="costs") if listed else el("p", "No benchmark fell.", class_="calm"),
    )


def _gains(tree: Tree) -> Html:
    listed = [el("li", sentence(c)) for c in gained(tree)]
    return section(
        "gains", "What rose", el("ul", *listed) if listed else el("p", "No benchmark rose.", class_="calm")
    )


def _sizes(tree: Tree) -> Html:
    unknown = [row["name"] for row in _benchmarks(tree) if row["n"] is None]
    rows = [
        [row["name"], _count(row), _size(row), *(_seen(row, n) for n in range(len(tree["columns"]) - 1))]
        for row in _sized(tree)
    ]
    columns = ["", "items", "detectable, points", *(f"to {c}" for c in tree["columns"][1:])]
    return section(
        "told",
        "What could have been told",
        lead(
            NO_INTERVALS + " What can be said is how large a change had to be for so many items to find it."
        ),
        wide(table(columns, rows, class_="small")) if rows else None,
        note(
            "“below”: smaller than that size; such a change may be noise, and a change of that size may hide where none is seen."
            + (f" Not known for {', '.join(unknown)}." if unknown else "")
        ),
    )


def _seen(row: Mapping[str, Any], column: int) -> str:
    change, found = row["changes"][column], row["told"][column]
    return "–" if change is None else f"{_signed(change)} {'' if found else 'below'}".strip()


def _how(tree: Tree) -> Html:
    lines: Sequence[str] = method(tree)
    return section(
        "how",
        "How this was made",
        el("ul", *(el("li", line) for line in lines)),
        facts(
            (
                ("columns", ", ".join(tree["columns"])),
                ("rows", str(len(tree["rows"]))),
                ("source", tree["source"]),
            )
        ),
    )
