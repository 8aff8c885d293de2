"""`seeds`: train the stack with several seeds and measure each: is a layer's effect the recipe's doing, or one training's luck?"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from demeanor.cli import arguments


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
        publish.show_section(options.results, found.name, "seeds")
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
