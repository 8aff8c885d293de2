"""`judge`: how far the judge of a stack may be believed, measured on pairs that people compared ([judge.md](judge.md))."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.cli import arguments

if TYPE_CHECKING:
    from demeanor.evaluation.judge_validation import Agreement, JudgeValidation
    from demeanor.evaluation.statistics import Estimate
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import judge_validation
        from demeanor.train.runs import Runs

        found = judge_validation.run(
            load(options),
            app.services(Runs(options.runs)),
            options.results,
            options.pairs,
            limit=options.limit,
            name=options.name,
        )
        show(found)
        print(f"written: {options.results / found.name}.judge.json")
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


def show(found: JudgeValidation) -> None:
    """Print what was measured, a line each with its interval."""
    who = f"{found.judge['model']} at {found.judge['url']}"
    print(f"{who}: {found.pairs} pairs, {found.verdicts} verdicts, {found.unread} without a verdict")
    lines: list[tuple[str, Estimate | Agreement | None]] = [
        ("right, as people said (a coin: 50%)", found.accuracy),
        ("Fleiss' kappa with people (a coin: 0)", found.kappa),
    ]
    if found.position:
        lines += [
            ("same answer in both orders", found.position.consistent),
            ("follows the place instead", found.position.follows),
            ("  always the first", found.position.first),
            ("  always the second", found.position.second),
        ]
    for name, number in lines:
        print(f"  {name:<40}{_with_interval(number, '' if 'kappa' in name else '%')}")
    if found.position:
        print(f"  {'first and second equally often: p':<40}{found.position.p:.3f}")


def _with_interval(found: Estimate | Agreement | None, unit: str) -> str:
    if found is None or found.value is None:
        return "not measured"
    value, *bounds = (
        None if x is None else f"{100 * x:.1f}%" if unit else f"{x:.2f}"
        for x in (found.value, found.low, found.high)
    )
    return f"{value}" if None in bounds else f"{value}  [{bounds[0]}, {bounds[1]}]"
