"""`gate`: may this version ship? Exit code 0 pass, 1 fail, 2 inconclusive, 3 not judged (a mistake in a file, nothing trained)."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.cli import arguments
from demeanor.core.errors import DemeanorError, UsageError

MISTAKE = 3

if TYPE_CHECKING:
    from demeanor.evaluation.gate import GateReport
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        try:
            return judge(options)
        except DemeanorError as error:  # its own code could be read as a verdict
            error.exit_code = MISTAKE
            raise
        except OSError:
            raise
        except Exception:  # 1, the code of a crash, is a verdict too
            traceback.print_exc()
            return MISTAKE

    def judge(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import gate
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        if options.verify:
            verdict = gate.verify(options.verify, os.environ.get(gate.KEY))
            print(f"{options.verify}: signature holds; verdict {verdict.name.lower()}")
            return verdict.value
        if not (options.stack and options.against and options.rules):
            raise UsageError(
                "gate: wanted STACK.yaml --against RESULT.json|MODEL_ID --rules gate.yaml, or --verify RECORD.json"
            )
        report, record = gate.run(
            load(options),
            app.services(Runs(options.runs)),
            options.results,
            against=options.against,
            rules=options.rules,
            limit=options.limit,
            name=options.name,
        )
        show(report)
        print(
            f"record: {record} ({'signed' if os.environ.get(gate.KEY) else f'not signed: {gate.KEY} is not set'})"
        )
        publish.refresh(options.results, record.name.removesuffix(".gate.json"))
        return report.verdict.value

    parser = verb(
        "gate",
        run,
        "may this version ship: exit code 0 pass, 1 fail, 2 inconclusive, 3 not judged",
        stack=False,
    )
    parser.add_argument("stack", type=Path, nargs="?", metavar="STACK.yaml")
    parser.add_argument(
        "--against",
        metavar="RESULT.json|MODEL_ID",
        help="the baseline: a result of `eval`, or a variant of this stack",
    )
    parser.add_argument(
        "--rules",
        type=Path,
        metavar="gate.yaml",
        help="superiority, non_inferiority, zero_tolerance, stability",
    )
    parser.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    parser.add_argument(
        "--name", type=arguments.name, help="name of the record and its rows (default: the stack's)"
    )
    parser.add_argument(
        "--verify",
        type=Path,
        metavar="RECORD.json",
        help="check a record's signature instead; exit code: its verdict",
    )
    parser.set_defaults(failed=MISTAKE)


def show(report: GateReport, *, brief: bool = False) -> None:
    """Print every finding and the verdict; `brief`: only the findings that are no pass."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console, table = Console(highlight=False, width=140), Table(box=None, padding=(0, 2, 0, 0))
    for column in ("rule", "on", "measured", "bounds", "limit", "clusters", "verdict"):
        table.add_column(column, justify="left" if column in ("rule", "on", "verdict") else "right")
    for f in report.findings:
        if brief and not f.verdict.value:
            continue
        bounds = " to ".join("" if x is None else f"{100 * x:.1f}" for x in (f.low, f.high))
        more = f" ({f.needed} clusters would decide)" if f.needed else ""
        table.add_row(
            f.kind.replace("_", " "),
            f.what,
            "–" if f.value is None else f"{100 * f.value:.1f}",
            bounds,
            f"{100 * f.limit:.1f}",
            str(f.clusters),
            f.verdict.name.lower() + more,
        )
    console.print(table)
    for f in report.findings:
        if f.items and f.verdict.value:
            console.print(
                f"{f.kind.replace('_', ' ')} on {f.what}, at fault: {', '.join(f.items[:8])}"
                f"{f' and {len(f.items) - 8} more' if len(f.items) > 8 else ''}",
                markup=False,
            )
    hold = (
        f" ({sum(not f.verdict.value for f in report.findings)} of {len(report.findings)} rules hold)"
        if brief
        else ""
    )
    console.print(Text(f"verdict: {report.verdict.name.lower()}{hold}", "bold"))
