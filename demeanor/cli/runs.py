"""`runs`: what lies in the folder of runs, and `--prune`: delete what no given stack needs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from demeanor.core.errors import UsageError
from demeanor.stack.stack import training_keys

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack
    from demeanor.train.runs import Entry


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads one stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor.train import runs

        if options.prune and not options.stacks:
            raise UsageError(
                "runs --prune: wanted the stack files whose weights stay: demeanor runs --prune a.yaml b.yaml"
            )
        if options.yes and not options.prune:
            raise UsageError("runs --yes: is for --prune; without it nothing is deleted")
        found, needed = runs.entries(options.runs), set[str]()
        for path in options.stacks:
            needed |= training_keys(load(argparse.Namespace(**vars(options) | {"stack": path})))
        if not options.prune:
            print(
                "\n".join(table([x for x in found if not options.stacks or x.key in needed]))
                or f"{options.runs}: no runs"
            )
            return 0
        if options.yes:
            runs.sweep(options.runs)
        return _prune(options, runs.unneeded(found, needed))

    parser = verb(
        "runs",
        run,
        "list trained and half-trained weights; --prune deletes what no given stack needs",
        stack=False,
    )
    parser.add_argument(
        "stacks",
        nargs="*",
        type=Path,
        metavar="STACK.yaml",
        help="only runs of these stacks; with --prune: the stacks whose runs stay",
    )
    parser.add_argument("--prune", action="store_true", help="say which runs none of the stacks needs")
    parser.add_argument("--yes", action="store_true", help="with --prune: delete them")


def _prune(options: argparse.Namespace, going: Sequence[Entry]) -> int:
    from demeanor.train import runs

    total = sum(x.size for x in going)
    if not going:
        print("every run is needed or running: nothing to delete")
        return 0
    print("\n".join(table(going)))
    if not options.yes:
        print(
            f"\n{_runs(going)}, {size(total)}, that no given stack needs. Nothing was deleted; --yes deletes."
        )
        return 0
    for x in going:
        runs.delete(options.runs, x.key)
    print(f"\ndeleted {_runs(going)}, {size(total)}")
    return 0


def _runs(found: Sequence[Entry]) -> str:
    return f"{len(found)} run{'' if len(found) == 1 else 's'}"


def table(found: Sequence[Entry]) -> list[str]:
    """Runs as lines under a heading, columns as wide as their widest entry; nothing where there are none."""
    from demeanor.train import runs

    if not found:
        return []
    rows = [("key", "stack", "stage", "begun (UTC)", "size", "loss", "held out", "state")]
    rows += [
        (
            x.key,
            x.stack,
            x.stage,
            runs.began(x),
            size(x.size),
            _number(x.loss),
            _number(x.held_out),
            x.state,
        )
        for x in found
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(w) if i in (4, 5, 6) else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def size(count: int) -> str:
    """Bytes for a person: 999 B, 1.2 kB, 34.5 MB (powers of 1000)."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.95:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
