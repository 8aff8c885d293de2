"""`attribute`: which layer did it. A full factorial of weights and runtime layers on the same items, split among the layers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from demeanor.cli import arguments
from demeanor.report.words import axis_name

if TYPE_CHECKING:
    from rich.table import Table

    from demeanor.evaluation.attribution import Attribution, Effect
    from demeanor.evaluation.base_prompting import BasePrompting
    from demeanor.stack.stack import Stack

VIEWS = (
    ("shapley", "Shapley, in the order of training"),
    ("waterfall", "each added to those before it"),
    ("leave_one_out", "the whole minus the whole without it"),
)
IDS = 6
ALIASES = 12
WIDTH = 160
"""Columns of the tables where the output is not a terminal."""


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import attribution
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        stack, services = load(options), app.services(Runs(options.runs))
        found = attribution.run(
            stack,
            services,
            options.results,
            weights=options.weights,
            layers=options.layers,
            limit=options.limit,
            name=options.name,
            fraction=options.fraction,
        )
        show(found)
        print(f"\nwritten: {options.results / found.name}.attribution.json")
        if options.base_prompts:
            from demeanor.evaluation import base_prompting

            asked = base_prompting.run(
                stack, services, options.results, limit=options.limit, name=options.name
            )
            show_base(asked)
            print(f"\nwritten: {options.results / found.name}.base.json")
        publish.refresh(options.results, found.name)
        return 0

    parser = verb(
        "attribute", run, "split what the stack does among its layers: a full factorial on the same items"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="STAGE",
        help="weights, in order of training (default: base to the served ones)",
    )
    parser.add_argument(
        "--layers",
        nargs="*",
        metavar="LAYER",
        help="runtime layers to switch (default: all that can change an answer); also: template, decoding",
    )
    parser.add_argument(
        "--fraction",
        choices=("full", "V", "IV"),
        default="full",
        help="measure a fraction of the subsets: V keeps pairs apart, IV keeps main effects apart from pairs",
    )
    parser.add_argument(
        "--base-prompts",
        action="store_true",
        help="also ask the base raw, with examples and through every template: what is training, what mere prompting",
    )
    parser.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    parser.add_argument("--name", type=arguments.name, help="name of the result (default: the stack's)")


def show(found: Attribution) -> None:
    """Print every view as a table: axes down, factors across, and what moved."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(
        Text(
            f"{found.name}: {len(found.cells)} cells x {found.items} items, weights {' < '.join(found.chain)}, "
            f"switches {', '.join(found.switches) or 'none'}",
            "bold",
        )
    )
    console.print(generations(found))
    console.print(f"design: {found.design}", markup=False)
    for alias in found.aliases[:ALIASES]:
        console.print(f"  cannot be told apart: {alias}", markup=False)
    if len(found.aliases) > ALIASES:
        console.print(f"  and {len(found.aliases) - ALIASES} more, in the JSON")
    if found.unscored:
        console.print(f"! {found.unscored} items have no score in some cell and are left out of all")
    for view, about in VIEWS:
        if effects := getattr(found, view):
            console.print(_table(effects, about, found.total if view == "shapley" else ()))
    shown = [e for e in found.interactions if e.shown]
    console.print(
        f"\ninteractions, v(ab) - v(a) - v(b) + v(0): {len(shown)} of {len(found.interactions)} shown"
    )
    for e in shown:
        console.print(f"  {e.name} on {axis_name(e.axis)}: {_cell(e)}")
    console.print(
        Text(
            "* the 95% cluster-bootstrap interval excludes zero and the corrected p agrees (Holm over all Shapley values; "
            "Benjamini-Hochberg within each other table)",
            "dim",
        )
    )
    console.print(
        Text.assemble(
            "suspect: ",
            (found.suspect, "bold"),
            "  (the factor without which the whole is shown to be better)",
        )
    )
    for moved in found.changed:
        for verb, lists in (("fixed", moved.fixed), ("regressed", moved.regressed)):
            if ids := [i for of_axis in lists.values() for i in of_axis]:
                more = f" and {len(ids) - IDS} more" if len(ids) > IDS else ""
                console.print(f"{moved.name} {verb} {len(ids)}: {', '.join(ids[:IDS])}{more}", markup=False)


def show_base(found: BasePrompting) -> None:
    """Print the base's means by way of asking, and what the stage after it adds to the best."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from demeanor.report import base

    tree, table = (
        asdict(found),
        Table(box=None, padding=(0, 2, 0, 0), title="\nhow the base was asked", title_justify="left"),
    )
    for n, name in enumerate(base.columns(tree)):
        table.add_column(name, justify="right" if n else "left", no_wrap=True)
    for row in base.cells(tree):
        table.add_row(*(Text(text, "bold" if bold else "") for text, bold in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(table)
    console.print(base.sentence(tree), markup=False)


def _table(effects: tuple[Effect, ...], about: str, total: tuple[Effect, ...]) -> Table:
    """Axes down, players across; with `total`, its column and the smallest effect that the weakest column would find."""
    from rich.table import Table

    table = Table(
        box=None, padding=(0, 2, 0, 0), title=f"\n{about}, points", title_justify="left", title_style="dim"
    )
    table.add_column("", no_wrap=True)
    players = list(dict.fromkeys(e.name for e in effects))
    for name in (*players, *(("sum", "detectable") if total else ())):
        table.add_column(name, justify="right", no_wrap=True)
    by = {(e.name, e.axis): e for e in effects}
    sums = {e.axis: f"{100 * e.value:+.1f}" for e in total}
    for axis in dict.fromkeys(e.axis for e in effects):
        mine = [by[name, axis] for name in players]
        table.add_row(axis_name(axis), *map(_cell, mine), *((sums[axis], _detectable(mine)) if total else ()))
    return table


def overall(found: Attribution) -> str:
    """Every player's share of the whole change over all items, in points."""
    axis = found.total[0].axis if found.total else ""
    shares = [f"{e.name} {_cell(e)}" for e in found.shapley if e.axis == axis]
    whole = next((100 * e.value for e in found.total), 0.0)
    return f"of {whole:+.1f} points over all items: {', '.join(shares)}. Suspect: {found.suspect}."


def generations(found: Attribution) -> str:
    """How much the cells shared: answers written of answers asked, and what only had to be checked."""
    fresh = found.asked - found.reused
    reused = f", {found.reused} answers measured before" if found.reused else ""
    share = f" ({found.generations / fresh:.0%})" if fresh and found.generations is not None else ""
    checked = (
        f", {found.confirmed} more only checked against an earlier answer of the same weights"
        if found.confirmed
        else ""
    )
    return f"generations made {found.generations} / {fresh} cells x items x seeds{share}{checked}{reused}"


def _cell(e: Effect) -> str:
    low_high = "" if e.low is None or e.high is None else f" ({100 * e.low:+.0f}..{100 * e.high:+.0f})"
    return f"{100 * e.value:+.1f}{'*' if e.shown else ''}{low_high}"


def _detectable(effects: list[Effect]) -> str:
    known = [e.detectable for e in effects if e.detectable is not None]
    return f"{100 * max(known):.1f}" if known else "-"
