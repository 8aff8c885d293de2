"""Parts of a healthy stack put into another one, and tools that take the arguments a model writes.

In: two stacks. Out: Trials that each lend one part (weights, template, decoding, one runtime layer), and the houses that can
serve them. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from demeanor.build.house import House, decoding_of
from demeanor.build.interventions import absolute, decoded_as, retemplated
from demeanor.build.shelf import Shelf
from demeanor.build.trials import Trial
from demeanor.evaluation.repairs import Intervention
from demeanor.stack import Stack
from demeanor.tools import _registry as tools
from demeanor.tools._registry import Tool
from demeanor.types import ToolSpec


def parts(stack: Stack, healthy: Stack) -> list[Trial]:
    """Every part in which the stacks differ, one at a time as the healthy one has it; a part accuses what it replaces."""
    return [
        *_weights(stack, healthy),
        *_template(stack, healthy),
        *_other_decoding(stack, healthy),
        *_layers(stack, healthy),
    ]


def foreign(healthy: Stack) -> Stack:
    """The stack with its files named from the root of the file system, so that a house of another stack can serve it."""
    healthy.key()
    found = replace(healthy, layers=tuple(absolute(x, healthy.root) for x in healthy.layers))
    name = healthy.template
    return retemplated(found, str((healthy.root / name).resolve())) if name.endswith(".jinja") else found


def _about(part: str, layer: str) -> Intervention:
    return Intervention(
        f"{part} of the healthy stack",
        "reference",
        layer,
        f"Take back {part}: the healthy stack's does better.",
    )


def _weights(stack: Stack, healthy: Stack) -> Iterator[Trial]:
    if stack.stage_key(stack.serve) == healthy.stage_key(healthy.serve):
        return
    same = {healthy.stage_key(name) for name in healthy.chain(healthy.serve)}
    stage = next(
        (name for name in stack.chain(stack.serve) if stack.stage_key(name) not in same), stack.serve
    )
    yield Trial(_about("weights", stage), stack, weights_of=healthy)


def _template(stack: Stack, healthy: Stack) -> Iterator[Trial]:
    lent = retemplated(stack, foreign(healthy).template)
    if lent.key() != stack.key():
        yield Trial(_about("template", "template"), lent)


def _other_decoding(stack: Stack, healthy: Stack) -> Iterator[Trial]:
    if decoding_of(stack) != decoding_of(healthy):
        yield Trial(
            _about("decoding", "decoding"),
            stack,
            decoded_as(decoding_of(healthy)),
            ("decoding", asdict(decoding_of(healthy))),
        )


def _layers(stack: Stack, healthy: Stack) -> Iterator[Trial]:
    order = [x.name for x in healthy.layers]
    for layer in foreign(healthy).layers:
        if not layer.behaviour:
            continue
        ours = [x.name for x in stack.layers]
        if layer.name in ours:
            layers = tuple(layer if x.name == layer.name else x for x in stack.layers)
        else:
            later = set(order[order.index(layer.name) + 1 :])
            at = next((n for n, name in enumerate(ours) if name in later), len(ours))
            layers = (*stack.layers[:at], layer, *stack.layers[at:])
        lent = replace(stack, layers=layers)
        if lent.key() != stack.key():
            yield Trial(_about(layer.name, layer.name), lent)


# ---- houses ----


def graft(house: House, lender: House | None, serve: str, renamed: Mapping[str, Mapping[str, str]]) -> House:
    """A house like `house` that shares its engines, but borrows the weights `serve` from `lender` and renames arguments of tools."""
    shelf = house._shelf if lender is None else Shelf(lambda stage: lender.weights(lender.stack.serve))
    found = replace(
        house,
        memory=None if house.memory is None else {},
        _shelf=shelf,
        _responds={},
        _closers=[],
        _shared={},
    )
    if renamed:
        known = house.kit_tools()
        found = replace(
            found,
            tool_set={**known, **{name: adapted(known[name], names) for name, names in renamed.items()}},
        )
    return found


def adapted(tool: Tool, names: Mapping[str, str]) -> Tool:
    """The tool with its arguments under other names (`names`: its own name to the other one)."""
    back = {new: old for old, new in names.items()}
    found = dict(tool.spec.parameters)
    found["properties"] = {names.get(k, k): v for k, v in found.get("properties", {}).items()}
    found["required"] = [names.get(k, k) for k in found.get("required", ())]

    async def run(arguments: Mapping[str, Any]) -> str:
        return await tool.run({back.get(k, k): v for k, v in arguments.items()})

    return tools.Tool(ToolSpec(tool.spec.name, tool.spec.description, found), run)
