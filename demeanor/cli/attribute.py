"""`attribute`: which layer did it. A full factorial of weights and runtime layers on the same items, split among the layers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from demeanor.cli import arguments

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack


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
        publish.show_section(options.results, found.name, "attribution")
        if options.base_prompts:
            from demeanor.evaluation import base_prompting

            base_prompting.run(stack, services, options.results, limit=options.limit, name=options.name)
            publish.show_section(options.results, found.name, "base")
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
