"""Tools by name: each file of this folder has a SPEC (how the model sees it) and an async `run(arguments) -> text`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from demeanor.core import registry
from demeanor.core.types import ToolSpec


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that can be run; its arguments have been checked against `spec.parameters`."""

    spec: ToolSpec
    run: Callable[[Mapping[str, Any]], Awaitable[str]]


def load(names: Iterable[str]) -> Mapping[str, Tool]:
    """The named tools; raises DemeanorError with the nearest and all known names."""
    modules = {name: registry.entry("demeanor.tools", name) for name in names}
    return {name: Tool(module.SPEC, module.run) for name, module in modules.items()}
