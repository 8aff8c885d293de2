"""`frontier`: what safety costs. Safe requests answered, unsafe ones refused, capability, per stage and per policy switch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from demeanor.cli import arguments

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import frontier
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        found = frontier.run(
            load(options),
            app.services(Runs(options.runs)),
            options.results,
            limit=options.limit,
            name=options.name,
        )
        publish.show_section(options.results, found.name, "frontier")
        return 0

    parser = verb(
        "frontier",
        run,
        "what safety costs: safe answered, unsafe refused, capability, by stage and by policy",
    )
    parser.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    parser.add_argument("--name", type=arguments.name, help="name of the result (default: the stack's)")
