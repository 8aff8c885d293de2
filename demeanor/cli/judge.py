"""`judge`: how far the judge of a stack may be believed, measured on pairs that people compared ([judge.md](judge.md))."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.cli import arguments

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import judge_validation
        from demeanor.report import terminal
        from demeanor.train.runs import Runs

        found = judge_validation.run(
            load(options),
            app.services(Runs(options.runs)),
            options.results,
            options.pairs,
            limit=options.limit,
            name=options.name,
        )
        terminal.show(judge_validation.section(found), terminal.console())
        print(f"\nwritten: {options.results / found.name}.judge.json")
        return 0

    parser = verb(
        "judge", run, "how far the judge may be believed: accuracy against people and position bias on pairs"
    )
    parser.add_argument(
        "pairs",
        type=Path,
        metavar="PAIRS.json|jsonl",
        help="LLMBar's rows, or rows of prompt, chosen, rejected",
    )
    parser.add_argument("--limit", type=arguments.count, metavar="N", help="use the first N pairs")
    parser.add_argument(
        "--name", type=arguments.name, help="name of the record and its verdicts (default: the stack's)"
    )
