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
        publish.show_section(options.results, record.name.removesuffix(".gate.json"), "gate")
        if not os.environ.get(gate.KEY):
            print(f"The record is not signed, because {gate.KEY} is not set.")
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
