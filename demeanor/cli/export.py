"""`export`: the served weights as a folder for other servers, and whether it answers as ours do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.train import export
        from demeanor.train.runs import Runs

        stack, runs = load(options), Runs(options.runs)
        if options.model:
            stack = replace(stack, serve=stack.resolve(options.model).serve)
        out = export.export(stack, runs, options.out, target=options.to, dtype=options.dtype)
        print(f"written: {out} ({stack.serve}, {options.to}, {options.dtype})")
        if not options.check:
            return 0
        found = app.check_export(stack, runs, out, target=options.to, limit=options.check)
        print("\n".join(export.report(found)))
        return 0 if found.equal else 1

    parser = verb(
        "export",
        run,
        "the served weights as a folder for other servers, compared with ours on the stack's suite",
    )
    parser.add_argument("out", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--model", help="a variant whose weights to export, e.g. NAME:sft (default: what is served)"
    )
    parser.add_argument(
        "--to",
        choices=("hf", "onnx"),
        default="hf",
        help="a Hugging Face folder (default), or ONNX Runtime GenAI",
    )
    parser.add_argument(
        "--dtype",
        choices=("fp32", "bf16"),
        default="fp32",
        help="number format of the weights (default: fp32)",
    )
    parser.add_argument(
        "--check",
        type=int,
        default=32,
        metavar="N",
        help="compare prompts and greedy answers on N items (default: 32; 0: do not); exit code 1 where they differ",
    )
