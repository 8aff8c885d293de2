"""`suites`: what the built-in suites hold, what they could find, and what silence earns on them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.cli import arguments
from demeanor.report.words import axis_name

if TYPE_CHECKING:
    from demeanor.core.types import Item
    from demeanor.evaluation.suites import Measured

LAST = "what it asks"
WIDTH = 150
"""Columns of the tables where the output is not a terminal."""


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "suites",
        help="what the built-in suites hold, and how small a difference they could find",
        description="List the suites, or look at some: axes, items, clusters, the smallest difference they would show, and what one fixed "
        "answer earns. Name them in a stack file as evaluation.suites: [builtin:format].",
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="SUITE",
        help="builtin:NAME, world:NAME or a file (default: all that need no file)",
    )
    parser.add_argument(
        "--show", type=arguments.count, default=0, metavar="N", help="print N items of each axis too"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a row per axis of each suite."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from demeanor.evaluation import statistics, suites

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=None, padding=(0, 2, 0, 0))
    quoted = [f'"{x}"' if x != "echo" else x for x in suites.SILENT]
    for name in ("suite", "axis", "items", "clusters", "detectable", *quoted, LAST):
        table.add_column(
            name, justify="left" if name in ("suite", "axis", LAST) else "right", no_wrap=name != LAST
        )
    shown: list[Item] = []
    for name in options.names or suites.offered():
        items = suites.items(name, Path())
        for i, axis in enumerate(suites.measured(items)):
            least = (
                f">{100 * statistics.DISCORDANCE:.0f}"
                if axis.detectable is None
                else f"{100 * axis.detectable:.1f}"
            )
            table.add_row(
                Text(name if i == 0 else ""),
                Text(axis_name(axis.axis)),
                str(axis.items),
                str(axis.clusters),
                least,
                *_floors(axis),
                axis.about,
            )
            shown += [item for item in items if item.axis == axis.axis][: options.show]
        table.add_row(Text(f"  {len(items)} items, version {suites.version(items)}", "dim"))
    console.print(table)
    console.print(
        Text(
            f"detectable: the smallest paired difference, in points, that is shown four times in five if {statistics.DISCORDANCE:.0%} of the items "
            f"change and items of a cluster agree with a correlation of {statistics.WITHIN:g}. Quoted: what that one answer earns on "
            "every item, in %; echo: the question itself.",
            "dim",
        )
    )
    for item in shown:
        console.print(Text.assemble("\n", (item.id, "bold"), f"  {item.scorer} {dict(item.target)}"))
        for message in item.messages:
            console.print(f"  {message.role}: {message.content}", markup=False)
    return 0


def _floors(axis: Measured) -> list[str]:
    return ["-" if value is None else f"{100 * value:.0f}" for value in axis.floors.values()]
