"""`duel`: which of two variants answers better, as the stack's judge sees it, at equal length and in both orders ([judge.md](judge.md))."""

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
        from demeanor.evaluation import duel
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        given = duel.Contestants(
            options.variants or (), options.compare, options.compare_key, options.suite or (), options.limit
        )
        services = app.services(Runs(options.runs))
        found = duel.run(load(options), services, options.results, given, name=options.name)
        publish.show_section(options.results, found.name, "duel")
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
