"""Tools by name: each file of this folder has a SPEC (what the model sees) and `run(arguments)`, async or not,
which returns text or any other value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from demeanor.core import registry
from demeanor.core.types import RunnableTool, ToolSpec


@dataclass(frozen=True, slots=True)
class LoadedTool:
    """A tool that can be run; its arguments were checked against `spec.parameters`."""

    spec: ToolSpec
    run: Callable[[Mapping[str, Any]], Any]


def load(names: Iterable[str]) -> Mapping[str, LoadedTool]:
    """Return the named tools; raises DemeanorError with the nearest and all known names."""
    modules = {name: registry.entry("demeanor.tools", name) for name in names}
    return {name: LoadedTool(module.SPEC, module.run) for name, module in modules.items()}


def with_renamed_arguments(tool: RunnableTool, names: Mapping[str, str]) -> LoadedTool:
    """Return the tool with renamed arguments (`names`: its own name -> the new one)."""
    own_names = {other: own for own, other in names.items()}
    parameters = dict(tool.spec.parameters)
    parameters["properties"] = {names.get(k, k): v for k, v in parameters.get("properties", {}).items()}
    parameters["required"] = [names.get(k, k) for k in parameters.get("required", ())]

    def run(arguments: Mapping[str, Any]) -> Any:
        return tool.run({own_names.get(k, k): v for k, v in arguments.items()})

    return LoadedTool(ToolSpec(tool.spec.name, tool.spec.description, parameters), run)
