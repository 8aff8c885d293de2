"""`seeds`: train the stack with several seeds and measure each: is a layer's effect the recipe's doing, or one training's luck?"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from demeanor.cli import arguments

if TYPE_CHECKING:
    from demeanor.evaluation.seeds import Seeds

WIDTH = 150
"""Columns of the tables where the output is not a terminal."""


def add(verb: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb; `verb` makes a parser with the common options."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import seeds as training_seeds
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        found = training_seeds.run(
            lambda more: app.load_stack(options.stack, [*options.overrides, *more]),
            app.services(Runs(options.runs)),
            options.results,
            chosen=options.seeds,
            limit=options.limit,
            name=options.name,
        )
        show(found)
        print(f"\nwritten: {options.results / found.name}.seeds.json")
        publish.refresh(options.results, found.name)
        return 0

    parser = verb(
        "seeds",
        run,
        "train it with several seeds and measure each: the recipe's doing, or one training's luck?",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="SEED",
        help="training seeds (default: 0 1 2)",
    )
    parser.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    parser.add_argument(
        "--name",
        type=arguments.name,
        help="name of the result (default: the stack's); each seed's own is NAME.seedN",
    )


def show(found: Seeds) -> None:
    """Print the ladder over seeds, and the steps that hold or were shown once."""
    from rich.console import Console
    from rich.table import Table

    from demeanor.report import seeds

    tree, console = asdict(found), Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    for title, head, rows in (
        (
            "share right, %: mean over seeds (lowest to highest)",
            ["axis", *found.variants],
            seeds.ladder(tree),
        ),
        ("changes in points", list(seeds.STEPS), seeds.steps(tree)),
    ):
        table = Table(
            box=None, padding=(0, 2, 0, 0), title=f"\n{title}", title_justify="left", title_style="dim"
        )
        for n, name in enumerate(head):
            table.add_column(
                name,
                justify="right" if n > (0 if rows and len(head) != len(seeds.STEPS) else 1) else "left",
                no_wrap=True,
            )
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(seeds.sentence(tree), markup=False)
