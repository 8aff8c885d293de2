"""What a stack is: its weight layers (trained or not, and what training would cost), its runtime layers, its variants."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.table import Table

from demeanor.core.errors import CheckpointError, DataError, TextError
from demeanor.core.types import Message, ToolCall, ToolSpec
from demeanor.stack.schema import Remote
from demeanor.stack.stack import Stack, plain
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import JinjaTemplate, Template, load_template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training.inspection import tokenizer_folder
from demeanor.training.plan import plans
from demeanor.training.runs import Runs, notes


def show(stack: Stack, runs: Runs, *, full: bool = False) -> None:
    """Print the stack; with `full`, every setting with its effective value as YAML."""
    console = Console(highlight=False)
    console.print(f"[bold]{stack.spec.name}[/]  key {stack.key()}  {stack.path}")
    console.print(_weights(stack, runs))
    for note in (*notes(stack), *_templates(stack, runs)):
        console.print(note, markup=False)
    console.print(_layers(stack))
    console.print(
        "[bold]variants[/] (model ids of the API and of eval)\n  "
        + "\n  ".join(v.model_id for v in stack.offered())
    )
    if full:
        settings = plain(stack.spec)
        settings["layers"] = [{"kind": x.kind, "name": x.name, **plain(x.spec)} for x in stack.layers]
        for stage in settings["weights"]["stages"]:
            if stage["kind"] != "train":
                continue
            stage["objective"] = {
                "kind": stack.objective_kind(stage["name"]),
                **plain(stack.objectives[stage["name"]]),
            }
            stage["parent"] = stack.parent(stage["name"])
        console.print("\n[bold]every setting[/] (effective values; what is null is off and not shown)")
        console.print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), markup=False)


# What a chat template may not write, and what is done then (docs/text.md).
INSTEAD = {
    "system user": "a system message (it is put before the first user's text)",
    "user assistant system user": "a later system message (it is put into the user's turn)",
    "assistant user": "an answer that comes first (an empty user turn is put before it)",
    "user user": "two user messages in a row (they are joined)",
    "tool list": "tools (they are listed in the system turn)",
    "calls": "tool calls (they are written as <tool_call> JSON)",
    "tool": "tool results (they are fenced in a user's turn)",
}
CALL = ToolCall("call_0123456789ab", "probe_tool", '{"city": "Corkel"}')
PROBE = (
    Message("system", "Be brief."),
    Message("user", "When?"),
    Message("assistant", "", (CALL,), reasoning="probe reasoning"),
    Message("tool", "12", tool_call_id=CALL.id, name=CALL.name),
    Message("assistant", "12.", reasoning="probe reasoning"),
)
TOOL = ToolSpec("probe_tool", "Times.", {"type": "object", "properties": {"city": {"type": "string"}}})


def _templates(stack: Stack, runs: Runs) -> list[str]:
    """Try the stack's templates on a conversation, and say what each does not write."""
    base = stack.spec.weights.base
    if isinstance(base, Remote):
        return []
    try:
        folder = tokenizer_folder(stack, runs)
    except CheckpointError:  # a base that is not trained yet has no tokenizer
        return []
    tokenizer = tokenizers.load(folder)
    names = dict.fromkeys([stack.spec.template, base.template or stack.spec.template])
    found = [load_template(name, tokenizer, folder=folder, root=stack.root) for name in names]
    return [line for template in found for line in _tried(template, tokenizer)]


def _tried(template: Template, tokenizer: Tokenizer) -> list[str]:
    where = f"template {template.name}"
    missing, notes = [], []
    if isinstance(template, JinjaTemplate):
        missing = [instead for order, instead in INSTEAD.items() if not template.knows(order)]
        if "strftime_now" in template.jinja:
            notes.append(f"{where}: writes today's date, so the same conversation differs from day to day")
    try:
        whole = template.render(PROBE, [TOOL], trained_from=len(PROBE) - 1)
        if "probe reasoning" not in tokenizer.decode(whole.tokens):
            missing.append("reasoning_content")
        ends = [token in template.stop_tokens for token, trained in zip(*whole) if trained]
        if not (template.stop or any(ends)):
            notes.append(f"{where}: its generation blocks leave out the token that ends an answer")
        template.render(PROBE, [TOOL])
    except TextError as error:
        notes.append(f"{where}: fails on a conversation with a call, its result and reasoning: {error}")
    except DataError as error:
        notes.append(f"{where}: trains only the last answer of a conversation: {error}")
    if missing:
        notes.insert(0, f"{where}: does not write " + ", ".join(missing))
    return notes


def _weights(stack: Stack, runs: Runs) -> Table:
    table = Table(
        title="weight layers, trained once, by content", title_justify="left", box=None, padding=(0, 2, 0, 0)
    )
    for name in ("stage", "objective", "from", "data", "key", "state", "to train"):
        table.add_column(name, justify="right" if name == "to train" else "left")
    total = 0.0
    for plan in plans(stack, runs):
        minutes = (
            ""
            if plan.state == "trained" or not plan.tokens
            else f"{plan.tokens / 1e6:.2f} M tokens, ~{plan.minutes:.1f} min"
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
        )
    table.caption = (
        f"* answers users.  To train now: about {total:.1f} minutes on this machine (an estimate)."
    )
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
        table.add_row(layer.name, layer.kind if layer.behaviour else f"{layer.kind} (operational)", settings)
    base = stack.spec.weights.base
    alone = getattr(base, "template", None)
    own = f", base alone: {alone}" if alone else ""
    table.add_row("template", "template", stack.spec.template + own)
    table.add_row(
        "decoding", "decoding", ", ".join(f"{k}={v}" for k, v in plain(stack.spec.decoding).items())
    )
    table.add_row("weights", base.kind, f"serving {stack.serve}")
    return table
