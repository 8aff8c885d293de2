"""`diagnose`: replay changes of the stack on what fails, and say which one repairs it, what it breaks, and which layer is the suspect."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.app import load_stack
from demeanor.cli import arguments
from demeanor.core.errors import UsageError
from demeanor.report.words import axis_name, p_value

if TYPE_CHECKING:
    from demeanor.evaluation.diagnosis.analysis import Diagnosis, Repair
    from demeanor.stack.stack import Stack

WIDTH = 170
"""Columns of the table where the output is not a terminal."""


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
        show(found)
        print(f"\nwritten: {options.results / found.name}.diagnosis.json")
        publish.refresh(options.results, found.name)
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


def show(found: Diagnosis) -> None:
    """Print a row per intervention, the best one honestly estimated, the suspect and the recommendation."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(
        Text(
            f"{found.name}: {found.failing} failing items of {found.scope}, {found.controls} controls for {found.passing} that "
            f"pass; judged {found.judged}",
            "bold",
        )
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (
        "",
        "accuses",
        "fixed",
        "share",
        "regressed",
        "net, points",
        "p",
        "tokens read",
        "written",
        "ms",
    ):
        table.add_column(column, justify="right" if column not in ("", "accuses") else "left", no_wrap=True)
    for r in sorted(found.repairs, key=lambda r: -(r.net or 0.0)):
        table.add_row(
            Text(r.name, "bold" if r.shown else ""),
            r.layer or "-",
            f"{r.fixed}/{r.failing}",
            interval(r.rate, r.rate_low, r.rate_high),
            f"{r.regressed}/{r.controls}",
            net(r),
            p_value(r.p_corrected),
            f"{r.prompt_tokens:+.0f}",
            f"{r.completion_tokens:+.0f}",
            f"{r.ms:+.0f}",
        )
    console.print(table)
    console.print(
        Text(
            "* the net change of all items lies above zero: interval, and p after Holm over the interventions",
            "dim",
        )
    )
    for r in found.repairs:
        for a in r.helped:
            told = f"{r.name} repairs {a.fixed}/{a.failing}, breaks {a.regressed}/{a.controls}"
            console.print(
                f"on {axis_name(a.axis)}: {told}, net {interval(a.net, a.net_low, a.net_high)}*", markup=False
            )
    if found.honest:
        h = found.honest
        console.print(
            f"the best of {len(found.repairs)} repairs {h.naive:.0%} of the items it was picked on; picked on one half and "
            f"estimated on the other ({', '.join(dict.fromkeys(h.chosen))}): {interval(h.value, h.low, h.high)}",
            markup=False,
        )
    console.print(Text.assemble("suspect: ", (found.suspect, "bold")))
    console.print(found.recommendation, markup=False)
    if found.learnt:
        points = ", ".join(f"{share:.0%} of the rows: {right:.0%} right" for share, right in found.curve)
        console.print(f"{points}. {found.learnt}", markup=False)


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A share in percent with its interval."""
    if value is None:
        return "-"
    return f"{value:.0%}" + ("" if low is None or high is None else f" ({100 * low:.0f}..{100 * high:.0f})")


def net(r: Repair) -> str:
    """A net change in points with its interval, starred if it is shown."""
    if r.net is None:
        return "-"
    bounds = (
        ""
        if r.net_low is None or r.net_high is None
        else f" ({100 * r.net_low:+.1f}..{100 * r.net_high:+.1f})"
    )
    return f"{100 * r.net:+.1f}{'*' if r.shown else ''}{bounds}"
