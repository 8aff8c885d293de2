"""`duel`: which of two variants answers better, as the stack's judge sees it, at equal length and in both orders ([judge.md](judge.md))."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from demeanor.cli import arguments
from demeanor.report import duel as told

if TYPE_CHECKING:
    from rich.table import Table

    from demeanor.evaluation.duel import DuelResult
    from demeanor.stack.stack import Stack

WIDTH = 160
"""Columns of the tables where the output is not a terminal."""


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import duel
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        given = duel.Contestants(
            options.variants or (), options.compare, options.compare_key, options.suite or (), options.limit
        )
        services = app.services(Runs(options.runs))
        found = duel.run(load(options), services, options.results, given, name=options.name)
        show(found)
        print(f"written: {options.results / found.name}.duel.json")
        publish.duels_on_page(options.results, found.name, found.suite_hash)
        return 0

    parser = verb(
        "duel",
        run,
        "let the judge compare variants pair by pair: win rates, also at equal length, and ratings",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="MODEL",
        help="these model ids, the last one the reference, instead of the ladder",
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="NAME=URL#MODEL",
        help="another assistant's OpenAI-compatible server as one more variant (repeatable)",
    )
    parser.add_argument(
        "--compare-key",
        action="append",
        default=[],
        metavar="NAME=ENV_VAR",
        help="the environment variable that holds that server's key (repeatable)",
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        metavar="SUITE",
        help="builtin:NAME, world:NAME or files, instead of the stack's suites",
    )
    parser.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    parser.add_argument("--name", type=arguments.name, help="name of the result (default: the stack's)")


def show(found: DuelResult) -> None:
    """Print a row per pair, the ratings, and what to doubt."""
    from rich.console import Console
    from rich.text import Text

    from demeanor.evaluation.result import plain

    console, tree = (
        Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH),
        plain(found),
    )
    console.print(
        Text(f"{found.name}: {found.items} items, {found.design}; judge {found.judge['model']}", "bold")
    )
    console.print(_table(told.COLUMNS, [told.row(m) for m in tree["matchups"]], left=2))
    console.print(Text("shares in percent with 95% intervals; a tie is half a win", "dim"))
    console.print(_table(told.RATED, [told.rated(r) for r in tree["ratings"]], left=1))
    console.print(Text("Bradley-Terry, Elo points, mean 0; length is not controlled", "dim"))
    for line in (told.worth(tree), *told.doubts(tree)):
        console.print(
            f"! {line}" if line != told.worth(tree) or found.judge_validation is None else line, markup=False
        )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for n, name in enumerate(columns):
        table.add_column(name, justify="left" if n < left else "right")
    for row in rows:
        table.add_row(*row)
    return table
