"""The result in a terminal: the ladder with its changes, what it cost, who refuses. Short; the page has the rest.

In: a result and a rich Console. Out: lines. A change is coloured only where its interval excludes zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from demeanor.report import trust, words
from demeanor.report.shape import Axis, Delta, Result

UP, DOWN, QUIET = "bold blue", "bold red", "dim"


def show(result: Result, console: Console) -> None:
    """Print the headline, the ladder, the losses, the refusals and every reason for doubt."""
    console.print()
    console.print(Text(words.headline(result), "bold"))
    console.print(_ladder(result))
    console.print(
        Text("change from the column before, in points, where its 95% interval excludes zero; ", QUIET)
        + Text("*", "bold")
        + Text(" also after Holm's correction", QUIET)
    )
    _costs(result, console)
    if result["external"]:
        console.print(_beside(result))
        for comparison in result["external"]:
            console.print(Text(words.beside_sentence(comparison)))
    if result["refusals"]:
        console.print(_refusals(result))
    for title, head, rows in (
        ("stated confidence", trust.CONFIDENCE, trust.confidence_rows(result)),
        ("the same in other words", trust.STEADINESS, trust.steadiness_rows(result)),
    ):
        if rows:
            console.print(_plain(title, head, rows))
    for warning in result["caveats"]:
        console.print(Text.assemble(("! ", "bold yellow"), warning))


def _ladder(result: Result) -> Table:
    table = Table(
        box=None, padding=(0, 2, 0, 0), title="\nshare right, %", title_justify="left", title_style=QUIET
    )
    table.add_column("axis", no_wrap=True, min_width=16)
    for variant in words.ladder_of(result):
        table.add_column(variant["label"], justify="right", no_wrap=True)
    table.add_column("n", justify="right", style=QUIET)
    table.add_column("detectable", justify="right", style=QUIET)
    for axis in result["axes"]:
        table.add_row(
            words.axis_name(axis["name"]),
            *_cells(result, axis),
            str(axis["items"]),
            words.percent(axis["detectable"]),
        )
    return table


def _cells(result: Result, axis: Axis) -> list[Text]:
    deltas: list[Delta | None] = [None]
    deltas += [
        next((d for d in step["deltas"] if d["axis"] == axis["name"]), None) for step in result["steps"]
    ]
    return [_cell(axis["means"][v["id"]]["value"], d) for v, d in zip(words.ladder_of(result), deltas)]


def _cell(value: float | None, delta: Delta | None) -> Text:
    if delta is None or not delta["shown"] or delta["value"] is None:
        return Text(words.percent(value))
    firm = "*" if delta["verdict"] in ("better", "worse") else ""
    return Text.assemble(
        words.percent(value),
        " ",
        (f"{words.points(delta['value'])}{firm}", UP if delta["value"] > 0 else DOWN),
    )


def _costs(result: Result, console: Console) -> None:
    if not result["steps"]:
        return
    steps = [cost for cost in result["regressions"] if cost["kind"] == "step"]
    console.print(Text("\nwhat it cost", "bold"))
    for cost in steps:
        console.print(Text.assemble(("▼ ", DOWN), words.cost_sentence(cost)))
    if not steps:
        console.print(Text(words.no_costs(result)))


def _beside(result: Result) -> Table:
    """The whole beside every other assistant: their means, and the whole minus theirs with its interval."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), title="\nbeside others", title_justify="left", title_style="bold"
    )
    for name in (
        "share right, %",
        "the whole",
        *(x for c in result["external"] for x in (c["name"], f"the whole − {c['name']}")),
    ):
        table.add_column(Text(name), justify="right" if name != "share right, %" else "left")
    for axis in result["axes"]:
        cells = [words.mean_interval(axis["means"][result["external"][0]["after"]])]
        for other in result["external"]:
            delta = next(d for d in other["deltas"] if d["axis"] == axis["name"])
            firm = "*" if delta["verdict"] in ("better", "worse") else ""
            cells += [
                words.mean_interval(axis["means"][other["before"]]),
                f"{words.points(delta['value'])}{firm} ({words.interval(delta)})",
            ]
        table.add_row(words.axis_name(axis["name"]), *cells)
    return table


def _plain(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(
        box=None, padding=(0, 2, 0, 0), title=f"\n{title}", title_justify="left", title_style="bold"
    )
    for n, name in enumerate(head):
        table.add_column(Text(name), justify="right" if n else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _refusals(result: Result) -> Table:
    labels, layers = words.labels_of(result), words.layers_of(result)
    rungs = {variant["id"] for variant in words.ladder_of(result)} | {c["before"] for c in result["external"]}
    declined = [x for x in layers if any(x in r["who_unsafe"] for r in result["refusals"])]
    table = Table(
        box=None, padding=(0, 2, 0, 0), title="\nrefusals", title_justify="left", title_style="bold"
    )
    for name in ("", "safe answered", "unsafe refused", *(f"by {x}" for x in declined), "d'"):
        table.add_column(name, justify="right" if name else "left")
    for found in result["refusals"]:
        if found["variant"] in rungs:
            by = [str(found["who_unsafe"].get(x, 0)) for x in declined]
            table.add_row(
                labels[found["variant"]],
                words.mean_interval(found["safe_compliance"]),
                words.mean_interval(found["unsafe_refusal"]),
                *by,
                words.rate_interval(found["d_prime"]),
            )
    return table
