"""A Trial: one thing changed about a stack, ready to be served; and the few ways to change one.

In: stacks and responds. Out: the same, changed. What is worth trying is said in interventions.py and openings.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from demeanor.core.types import Decoding, Done, Event, Item, Respond, RunnableTool, Text, ToolSpec, Turn
from demeanor.evaluation.diagnosis import prompts
from demeanor.evaluation.diagnosis.analysis import Intervention, InterventionInfo, Wrap, replaced
from demeanor.evaluation.rows import Row
from demeanor.layers.policy import Spec as PolicySpec
from demeanor.layers.policy.rules import PolicySpec as Rules
from demeanor.layers.policy.rules import read_yaml
from demeanor.stack.schema import Import, Remote
from demeanor.stack.stack import Layer, Stack
from demeanor.stack.validate import file_fields

SEED = 1000
"""Added to the seed of the same stack asked again."""
LONGER = 4
TEMPLATES = ("turns", "chatml", "transcript")
END = re.compile(r"(?<=[.!?}\]])(?=\s|<)|\n|<\|")
"""Where a first sentence (or JSON object) ends."""


def interventions(
    stack: Stack,
    trained: Sequence[str],
    failing: Sequence[Item],
    controls: Sequence[Item],
    rows: Mapping[str, Row],
    examples: Sequence[tuple[Item, str]],
    tools: Mapping[str, RunnableTool],
    scratch: Path,
) -> list[Intervention]:
    """Every intervention that makes sense for this stack; `trained` are the weights that exist, `rows` how each item was answered.

    `examples` are passing items with their answers; `tools` are those of the house, `scratch` a folder for policy files with one rule less.
    """
    return [
        *_off(stack, trained),
        *_rules(stack, scratch),
        *_templates(stack),
        *_decoding(stack, failing, rows),
        *prompts.prompts(stack, failing),
        *prompts.sentences(stack),
        *prompts.examples(stack, examples),
        *prompts.passages(stack, failing, controls),
        *_tools(stack, failing, rows, tools),
    ]


# ---- layers and weights ----


def _off(stack: Stack, trained: Sequence[str]) -> Iterator[Intervention]:
    for name in stack.switches:
        yield Intervention(
            InterventionInfo(
                f"{name} off", "off", name, f"Undo layer {name}: the stack is better without it."
            ),
            stack.without(name),
        )
    chain = stack.chain(stack.serve)
    for above, stage in zip(reversed(chain), reversed(chain[:-1])):
        if stage in trained:
            advice = f"Undo stage {above}: the weights before it ({stage}) do better."
            yield Intervention(
                InterventionInfo(f"weights of {stage}", "stage", above, advice),
                stack.variant(stage, *stack.switches),
            )


def _rules(stack: Stack, scratch: Path) -> Iterator[Intervention]:
    policies = [layer for layer in stack.layers if isinstance(layer.spec, PolicySpec)]
    for layer in policies:
        assert isinstance(layer.spec, PolicySpec)
        rules = read_yaml(stack.root / layer.spec.rules, Rules).rules
        for rule in rules if len(rules) > 1 else ():  # without its only rule the layer is off
            name, kept = (
                rule.name,
                [r.model_dump(mode="json", exclude_unset=True) for r in rules if r is not rule],
            )
            path = scratch / f"{layer.name}-without-{name}.yaml"
            path.write_text(yaml.safe_dump({"rules": kept}), encoding="utf-8")
            spec = layer.spec.model_copy(update={"rules": str(path.resolve())})
            advice = f"Loosen or drop rule {name} of {layer.name}: it stops what is right."
            of = f" of {layer.name}" if len(policies) > 1 else ""  # two policies may name their rules alike
            about = InterventionInfo(f"rule {name}{of} off", "rule", layer.name, advice)
            yield Intervention(about, replaced(stack, layer.name, replace(layer, spec=spec)))


def _templates(stack: Stack) -> Iterator[Intervention]:
    stack.key()  # stage keys are now known: another template is not another training
    base = stack.spec.weights.base
    if isinstance(base, Remote):
        return  # its template is the other server's affair
    for name in (*(("model",) if isinstance(base, Import) else ()), *TEMPLATES):
        if name != stack.template:
            advice = f"Prompt the weights with template {name}: they read it better."
            yield Intervention(
                InterventionInfo(f"template {name}", "template", "template", advice), retemplated(stack, name)
            )


def retemplated(stack: Stack, name: str) -> Stack:
    """The stack with the same weights prompted through another template."""
    stack.key()
    weights = stack.spec.weights
    base = weights.base.model_copy(update={"template": name}) if stack.serve == "base" else weights.base
    spec = stack.spec.model_copy(
        update={"template": name, "weights": weights.model_copy(update={"base": base})}
    )
    return replace(stack, spec=spec)  # shares the stage keys computed above


# ---- decoding ----


def decoded(**changes: Any) -> Wrap:
    """Change decoding settings of every turn."""

    def wrap(inner: Respond) -> Respond:
        return lambda turn: inner(replace(turn, decoding=replace(turn.decoding, **changes)))

    return wrap


def decoded_as(given: Decoding) -> Wrap:
    """Decode every turn so, but for the seed and the form that the turn brings."""
    return decoded(
        **{f.name: getattr(given, f.name) for f in fields(given) if f.name not in ("seed", "form")}
    )


def reseeded(inner: Respond) -> Respond:
    """Draw every answer again."""
    return lambda turn: inner(
        replace(turn, decoding=replace(turn.decoding, seed=(turn.decoding.seed or 0) + SEED))
    )


def first_sentence(inner: Respond) -> Respond:
    """Stop every answer after its first sentence, as if the weights had ended their turn there."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        said: list[str] = []
        async for event in inner(turn):
            if isinstance(event, Text):
                said.append(event.text)
                continue
            if isinstance(event, Done):
                text = "".join(said)
                end = END.search(text, len(text) - len(text.lstrip()))
                yield Text(text if end is None else text[: end.start()])
                event = event if end is None else replace(event, finish_reason="stop")
            yield event

    return respond


def _decoding(stack: Stack, failing: Sequence[Item], rows: Mapping[str, Row]) -> Iterator[Intervention]:
    spec = stack.spec.decoding
    if spec.temperature > 0:
        yield Intervention(InterventionInfo("again", "again", "", ""), stack, reseeded, ("seed", SEED))
        advice = "Lower decoding.temperature: the likeliest answer is better than a drawn one."
        about = InterventionInfo("greedy", "decoding", "decoding", advice)
        yield Intervention(about, stack, decoded(temperature=0.0), ("greedy",))
    if any(rows[item.id].finish_reason == "length" for item in failing if item.id in rows):
        longest = LONGER * spec.max_tokens
        about = InterventionInfo(
            "longer answers",
            "decoding",
            "decoding",
            f"Raise decoding.max_tokens (to {longest}): answers are cut off.",
        )
        yield Intervention(about, stack, decoded(max_tokens=longest), ("max_tokens", longest))
        teacher = next(
            (s for s in reversed(stack.chain(stack.serve)[1:]) if stack.objective_kind(s) == "sft"),
            stack.serve,
        )
        about = InterventionInfo(
            "first sentence",
            "decoding",
            teacher,
            f"Train the end of the turn in stage {teacher}: answers are right and do not stop.",
        )
        yield Intervention(about, stack, first_sentence, ("first sentence",))


# ---- tools ----


def _tools(
    stack: Stack, failing: Sequence[Item], rows: Mapping[str, Row], tools: Mapping[str, RunnableTool]
) -> Iterator[Intervention]:
    layer = next((x for x in stack.layers if x.kind == "tools"), None)
    if layer is None:
        return
    renamed = {
        name: new
        for name in getattr(layer.spec, "allow", ())
        if (new := _renaming(tools[name].spec, failing, rows))
    }
    if renamed:
        told = "; ".join(f"{name}({', '.join(new.values())})" for name, new in renamed.items())
        about = InterventionInfo(
            "arguments as the weights write them",
            "tools",
            layer.name,
            f"Repair the schema of {layer.name}: the weights call {told}.",
        )
        yield Intervention(about, stack, renamed=renamed)


def _renaming(tool: ToolSpec, failing: Sequence[Item], rows: Mapping[str, Row]) -> dict[str, str] | None:
    """The argument names of a tool mapped to those that the failed calls used instead, in order; None if they agree."""
    wanted = list(tool.parameters.get("properties", {}))
    for item in failing:
        for did in rows[item.id].events if item.id in rows else ():
            found = (
                re.fullmatch(rf"{re.escape(tool.name)}\((.*)\)", did.detail, re.DOTALL)
                if did.what == "called a tool"
                else None
            )
            try:
                used = list(json.loads(found[1])) if found else wanted
            except ValueError:
                continue
            if set(used) != set(wanted) and len(used) == len(wanted):
                return dict(zip(wanted, used))
    return None


def absolute(layer: Layer, root: Path) -> Layer:
    """The layer with its files named from the root of the file system, so that it can stand in another stack."""
    files = {name: getattr(layer.spec, name) for name in file_fields(type(layer.spec))}
    moved = {name: str((root / value).resolve()) for name, value in files.items() if value is not None}
    return replace(layer, spec=layer.spec.model_copy(update=moved))
