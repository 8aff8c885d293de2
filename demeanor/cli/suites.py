"""`suites`: what the built-in suites hold, what they could find, and what silence earns on them."""

from __future__ import annotations

import argparse

from demeanor.cli import arguments


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
    """Print a row per axis of each suite, and items where asked for."""
    from demeanor.evaluation import suites
    from demeanor.report import terminal

    terminal.show(suites.section(options.names, options.show), terminal.console())
    return 0
