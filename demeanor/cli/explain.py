"""What a stack is: its weight layers (trained or not, and what training would cost), its runtime layers, its variants."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.table import Table

from demeanor.app import GENERATION, decoding_note, memory_note, policy_notes
from demeanor.indexes import RetrievalSpec, indexed
from demeanor.stack.schema import Remote, upstream_name
from demeanor.stack.stack import Stack, plain
from demeanor.training.inspection import template_notes
from demeanor.training.plan import plans
from demeanor.training.runs import Runs, notes


def show(stack: Stack, runs: Runs, *, full: bool = False) -> None:
    """Print the stack; with `full`, every setting with its effective value as YAML."""
    console = Console(highlight=False)
    console.print(f"[bold]{stack.spec.name}[/]  key {stack.key()}  {stack.path}")
    console.print(_weights(stack, runs))
    for note in (*notes(stack, runs), *template_notes(stack, runs)):
        console.print(note, markup=False)
    if note := _upstreams(stack):
        console.print(note, markup=False)
    console.print(_layers(stack))
    if note := memory_note(stack, runs):
        console.print(note, markup=False)
    for note in policy_notes(stack):
        console.print(note, markup=False)
    console.print(
        "[bold]variants[/] (model ids of the API and of eval)\n  "
        + "\n  ".join(v.model_id for v in stack.offered())
    )
    if full:
        settings = plain(stack.spec)
        settings["layers"] = [{"kind": x.kind, "name": x.name, **plain(x.spec)} for x in stack.layers]
        for stage in settings["weights"]["stages"]:
            if stage["kind"] not in ("train", "online"):
                continue
            stage["objective"] = {
                "kind": stack.objective_kind(stage["name"]),
                **plain(stack.objectives[stage["name"]]),
            }
            stage["parent"] = stack.parent(stage["name"])
        console.print("\n[bold]every setting[/] (effective values; what is null is off and not shown)")
        console.print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), markup=False)


def _upstreams(stack: Stack) -> str:
    """The servers that may answer, in the order in which they are asked; empty for one alone."""
    base = stack.spec.weights.base
    if not isinstance(base, Remote) or base.fallbacks is None:
        return ""
    shares = [f", weight {x.weight:g}" if x.weight is not None else "" for x in base.upstreams]
    told = [
        f"{upstream_name(x)} ({x.model} at {x.url}{share})"
        for x, share in zip(base.upstreams, shares, strict=True)
    ]
    return f"asked {'in this order' if base.weight is None else 'first by weight'}: {'; '.join(told)}"


def _weights(stack: Stack, runs: Runs) -> Table:
    table = Table(
        title="weight layers, trained once, by content", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for name in ("stage", "objective", "from", "data", "key", "state", "to train", "memory"):
        table.add_column(name, justify="right" if name in ("to train", "memory") else "left")
    total = 0.0
    for plan in plans(stack, runs, GENERATION.items):
        minutes = (
            ""
            if plan.state == "trained" or not plan.tokens
            else f"{plan.tokens / 1e6:.2f} M tokens, ~{max(plan.minutes, 0.1):.1f} min"
        )
        total += 0.0 if plan.state == "trained" else plan.minutes
        table.add_row(
            f"[bold]{plan.name}[/]" + (" *" if plan.name == stack.serve else ""),
            plan.objective,
            plan.parent,
            plan.data,
            stack.stage_key(plan.name)[:8],
            plan.state,
            minutes,
            "" if plan.state == "trained" else plan.memory,
        )
    wanted = f"about {total:.1f} minutes" if total >= 1 else "less than a minute" if total else "nothing"
    table.caption = f"* answers users.  To train now: {wanted} on this machine (an estimate)."
    table.caption_justify = "left"
    return table


def _layers(stack: Stack) -> Table:
    table = Table(
        title="\nruntime layers, outermost first: the order in which a request travels",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name in ("layer", "kind", "settings"):
        table.add_column(name)
    for layer in stack.layers:
        settings = ", ".join(f"{k}={v}" for k, v in plain(layer.spec).items())
        if isinstance(layer.spec, RetrievalSpec):
            settings += f" ({indexed(layer.spec, stack.root)})"
        table.add_row(layer.name, layer.kind if layer.behaviour else f"{layer.kind} (operational)", settings)
    base = stack.spec.weights.base
    alone = getattr(base, "template", None)
    own = f", base alone: {alone}" if alone else ""
    told = "the other server's own" if base.kind == "remote" else stack.spec.template + own
    table.add_row("template", "template", told)
    table.add_row(
        "decoding", "decoding", ", ".join(f"{k}={v}" for k, v in plain(stack.spec.decoding).items())
    )
    how = decoding_note(stack)
    table.add_row("weights", base.kind, f"serving {stack.serve}" + (f", {how}" if how else ""))
    return table
