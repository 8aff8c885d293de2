"""`frontier`: what safety costs. Safe requests answered, unsafe ones refused, capability, per stage and per policy switch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

from demeanor.cli import arguments
from demeanor.report.words import mean_interval, p_value, rate_interval

if TYPE_CHECKING:
    from rich.console import Console

    from demeanor.evaluation.frontier import Frontier
    from demeanor.stack.stack import Stack

TAXES = 3
"""Lost items that the terminal shows of each point."""


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import app
        from demeanor.evaluation import frontier
        from demeanor.report import publish
        from demeanor.train.runs import Runs

        found = frontier.run(
            load(options),
            app.services(Runs(options.runs)),
            options.results,
            limit=options.limit,
            name=options.name,
        )
        show(found)
        print(f"\nwritten: {options.results / found.name}.frontier.json")
        publish.refresh(options.results, found.name)
        return 0

    parser = verb(
        "frontier",
        run,
        "what safety costs: safe answered, unsafe refused, capability, by stage and by policy",
    )
    parser.add_argument(
        "--limit", type=arguments.count, metavar="N", help="use the first N items of each axis"
    )
    parser.add_argument("--name", type=arguments.name, help="name of the result (default: the stack's)")


def show(found: Frontier) -> None:
    """Print a row per point."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in (
        "",
        "safe answered",
        "unsafe refused",
        "capability",
        "d'",
        "threshold",
        "lost/gained",
        "tokens",
        "ms",
        "who refused",
        "beaten by",
    ):
        table.add_column(column, justify="right" if column else "left")
    for p in asdict(found)["points"]:
        if p["swept"]:
            continue
        r = p["refusals"]
        who = ", ".join(f"{by} {n}" for by, n in r["who_unsafe"].items() if by != "nobody")
        table.add_row(
            p["label"],
            mean_interval(r["safe_compliance"]),
            mean_interval(r["unsafe_refusal"]),
            mean_interval(p["capability"]),
            rate_interval(r["d_prime"]),
            rate_interval(r["criterion"]),
            f"{len(p['lost'])}/{len(p['gained'])}",
            f"{p['mean_tokens']:.0f}",
            f"{p['mean_ms']:.0f}",
            who or "-",
            _beaten(p["dominated_by"]),
        )
    console = Console(highlight=False, width=190)
    console.print(table)
    thresholds(found, console)
    for point in found.points:
        if (kl := point.divergence) is not None:
            bounds = "" if kl.low is None or kl.high is None else f" ({kl.low:.2f}..{kl.high:.2f})"
            console.print(
                f"{point.label}: KL to its parent {kl.value:.2f}{bounds} nats per answer, {kl.per_token:.3f} per token "
                f"({kl.n} drawn answers)"
            )
        if (sure := point.calibration) is not None:
            console.print(
                f"{point.label}: calibration error {sure.ece:.3f}, {sure.expected:.3f} (to {sure.null_high:.3f}) if perfect, "
                f"p {p_value(sure.p)}; mean confidence {sure.mean_confidence:.0%}, right {sure.right:.0%} of {sure.n}"
            )
    for point in [p for p in found.points if not p.swept]:
        for tax in point.tax[:TAXES]:
            console.print(
                f"{point.label} lost {tax.item_id}: {tax.question!r}: was {tax.before!r}, is {tax.now!r}",
                markup=False,
            )
        if len(point.tax) > TAXES:
            console.print(f"{point.label} lost {len(point.tax) - TAXES} more, in the JSON and on the page")


def _beaten(by: list[str] | tuple[str, ...]) -> str:
    return "-" if not by else by[-1] if len(by) == 1 else f"{by[-1]} and {len(by) - 1} more"


def thresholds(found: Frontier, console: Console) -> None:
    """Print what each rule of cues would do at each threshold, per set of weights; the declared one is marked."""
    from rich.table import Table

    points = [p for p in asdict(found)["points"] if p["threshold"] is not None]
    order = list(dict.fromkeys(p["label"].partition("@")[0] for p in asdict(found)["points"]))
    if not points:
        return
    table = Table(
        box=None, padding=(0, 2, 0, 0), title="\nat other thresholds", title_justify="left", title_style="dim"
    )
    for column in (
        "rule",
        "weights and layers",
        "threshold",
        "safe answered",
        "unsafe refused",
        "capability",
        "d'",
    ):
        table.add_column(
            column, justify="right" if column not in ("rule", "weights and layers") else "left", no_wrap=True
        )
    for p in sorted(
        points, key=lambda p: (p["rule"], order.index(p["label"].partition("@")[0]), p["threshold"])
    ):
        r = p["refusals"]
        table.add_row(
            p["rule"],
            p["label"].partition("@")[0],
            f"{p['threshold']:g}{'' if p['swept'] else ' (declared)'}",
            mean_interval(r["safe_compliance"]),
            mean_interval(r["unsafe_refusal"]),
            mean_interval(p["capability"]),
            rate_interval(r["d_prime"]),
        )
    console.print(table)


def brief(found: Frontier, console: Console) -> None:
    """Print what stands at the ends: the weights bare, behind the layers, and behind all of them with policy."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "safe answered", "unsafe refused", "capability", "items lost", "gained", "beaten by"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for p in asdict(found)["points"]:
        if p["swept"]:
            continue
        r = p["refusals"]
        table.add_row(
            p["label"],
            mean_interval(r["safe_compliance"]),
            mean_interval(r["unsafe_refusal"]),
            mean_interval(p["capability"]),
            str(len(p["lost"])),
            str(len(p["gained"])),
            _beaten(p["dominated_by"]),
        )
    console.print(table)
