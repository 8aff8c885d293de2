"""`samples`: what a stage said while it trained, prompt by prompt, step under step."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demeanor.core.errors import DemeanorError

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor.train import progress
        from demeanor.train.generation_eval import SAMPLES

        folder = options.stack if options.stack.is_dir() else _folder(load(options), options)
        rows = progress.read_log(folder / SAMPLES)
        if not rows:
            raise DemeanorError(
                f"{folder / SAMPLES}: no samples; a stage leaves them if it trains with `probe:` in the stack, or with "
                "`demeanor train ... --probe 16`"
            )
        print("\n".join(lines(rows, options.prompts)))
        return 0

    parser = verb(
        "samples", run, "what a stage said while it trained, prompt by prompt, step under step", stack=False
    )
    parser.add_argument("stack", type=Path, metavar="STACK.yaml|RUN")
    parser.add_argument("--stage", help="stage of the stack (default: the one that answers)")
    parser.add_argument("--prompts", type=int, metavar="N", help="the first N prompts (default: all)")


def _folder(stack: Stack, options: argparse.Namespace) -> Path:
    from demeanor.train.runs import Runs

    name = options.stage or stack.serve
    if name != "base":
        stack.stage(name)  # raises on a name that is none
    return Runs(options.runs).folder(stack.stage_key(name))


def lines(rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> Iterator[str]:
    """A heading for each prompt, then a line for each step: its number, tokens said (`+` if it did not end), the answer."""
    for prompt in list(dict.fromkeys(row["prompt"] for row in rows))[:limit]:
        yield f"## {_line(prompt)}"
        for row in rows:
            if row["prompt"] == prompt:
                size = f"{len(row['tokens'])}{'' if row['ended'] else '+'}"
                yield f"{row['step']:>7} {size:>5}  {_line(row['answer'])}"
        yield ""


def _line(text: str) -> str:
    """Text as one line: line ends and control characters written out."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
