"""What a layer may ask for: callables only, handed in by whoever composes the stack.

Nothing here knows an engine, a database or a tool; tests hand in stubs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from demeanor.types import Event, Messages, Passage, ToolSpec, Turn


class Tool(Protocol):
    """A tool that can be run: how the model sees it, and the function behind it."""

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def run(self) -> Callable[[Mapping[str, Any]], Awaitable[str]]: ...


class Record(Protocol):
    """Stores a finished turn. Calling it queues the write; what it returns is done once the write is durable."""

    def __call__(
        self, turn: Turn, events: Sequence[Event], started: datetime, finished: datetime
    ) -> Awaitable[None]: ...


Search: TypeAlias = Callable[[str, int], list[Passage]]
"""Takes a query and a number of passages; returns the best, best first."""


@dataclass(frozen=True)
class Kit:
    """What the composition hands to every layer; `shared` is state that all variants of one served stack have in common."""

    root: Path
    """The stack file's folder."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    now: Callable[[], datetime]
    count_tokens: Callable[[Messages, Sequence[ToolSpec]], int]
    tools: Mapping[str, Tool]
    open_index: Callable[[Path], Search]
    open_store: Callable[[str], Record]
    shared: MutableMapping[Any, Any] = field(default_factory=dict)
