"""`diagnose`: replay changes of the stack on what fails, and say which one repairs it, what it breaks, and which layer is the suspect."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.app import load_stack
from demeanor.cli import arguments
from demeanor.core.errors import UsageError

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation.diagnosis import diagnose
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        stack = load(options)
        result = options.against if options.against and options.against.suffix == ".jsonl" else None
        reference = load_stack(options.against) if options.against and not result else None
        if options.turns and (options.rows or options.against or options.limit or options.learning_curve):
            raise UsageError(
                "--turns takes its items from the database: leave out --rows, --against, --limit and --learning-curve"
            )
        scope = diagnose.Scope(
            options.axis,
            tuple(options.items or ()),
            options.limit,
            reference,
            result,
            options.rows,
            options.turns,
        )
        found = diagnose.run(
            stack,
            app.services(Runs(options.runs)),
            options.results,
            scope,
            name=options.name,
            learn=options.learning_curve,
        )
        publish.show_section(options.results, found.name, "diagnosis")
        return 0

    parser = verb(
        "diagnose", run, "which change repairs what fails, what it breaks, and which layer is the suspect"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--axis", help="failing items of this axis (default: of all)")
    what.add_argument("--items", nargs="+", metavar="ID", help="these items, as far as they fail")
    what.add_argument(
        "--turns",
        type=Path,
        metavar="DATABASE",
        help="logged turns with bad feedback; those with good feedback are controls",
    )
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="NAME.rows.jsonl",
        help="what the stack answers as it is, from rows that eval left",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="STACK.yaml|NAME.rows.jsonl",
        help="a reference stack or an earlier result: only what was right there; parts of the stack are tried too",
    )
    parser.add_argument(
        "--learning-curve",
        action="store_true",
        help="also train the last stage on a quarter and a half of its rows: would more help?",
    )
    parser.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    parser.add_argument("--name", type=arguments.name, help="name of the result (default: the stack's)")
