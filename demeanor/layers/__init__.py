"""Runtime layers: what a layer gets from the stack, how layers are composed, and how they are timed.

A layer is a module with a Spec and `wrap(spec, inner, kit)`, which returns a respond around `inner`. Layers
get callables only and know no engine, database or tool; tests pass in stubs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeAlias

from demeanor.core.errors import DemeanorError
from demeanor.core.registry import Spec
from demeanor.core.reservations import Maxima, Reservations
from demeanor.core.types import Done, Event, Messages, Respond, RunnableTool, Search, Timing, ToolSpec, Turn


class Record(Protocol):
    """Stores a finished turn. Calling it queues the write; its result is done once the write is durable."""

    def __call__(
        self, turn: Turn, events: Sequence[Event], started: datetime, finished: datetime
    ) -> Awaitable[None]: ...


class ToolServers(Protocol):
    """Tools that can appear and disappear while the stack is served (MCP servers)."""

    def tools(self) -> Mapping[str, RunnableTool]:
        """The tools that may be offered now, by the name that a model calls them by."""

    def withheld(self) -> Mapping[str, str]:
        """Why each other tool is not offered, by its name."""


async def _writable() -> None: ...


async def everything(turn: Turn) -> Turn:
    """Return the turn unchanged: all of it may be stored."""
    return turn


def _unranked(texts: Sequence[str], how: Any) -> Callable[[str], Sequence[int]]:
    raise DemeanorError("this kit ranks no texts; a stack's runtime does")


def no_limits(address: str, maxima: Maxima, allow_when_away: bool) -> Reservations:
    """Raise: these layers were composed without a store for limits."""
    raise DemeanorError(f"limits: nothing here opens {address}")


@dataclass(frozen=True)
class Kit:
    """What every layer gets from the stack. `shared` is state that all variants of one served stack share."""

    root: Path  # folder of the stack file
    clock: Callable[[], float]  # monotonic seconds
    now: Callable[[], datetime]
    count_tokens: Callable[[Messages, Sequence[ToolSpec]], int]
    tools: Mapping[str, RunnableTool]
    open_index: Callable[[Path, Any], Search]  # a folder, and how to search it (retrieval's `search`)
    open_store: Callable[[str], Record]
    open_limits: Callable[[str, Maxima, bool], Reservations] = no_limits  # the address of a store of limits
    open_check: Callable[[str], Callable[[], Awaitable[None]]] = lambda url: _writable  # StoreError: locked
    open_servers: Callable[[Any, tuple[str, ...]], ToolServers] | None = None
    """A tools layer's settings and the names of its own tools to its MCP servers, connected once for all variants."""
    rank_texts: Callable[[Sequence[str], Any], Callable[[str], Sequence[int]]] = _unranked
    """Texts in the order of their similarity to a question; how: prompt's `select`."""
    shared: MutableMapping[Any, Any] = field(default_factory=dict)
    vectors: Callable[[str, Sequence[str]], Awaitable[Sequence[Sequence[float]]]] | None = None
    """Stage key of weights and texts to one unit vector per text; None: there are no local weights."""
    connect: Callable[[str, str, str | None, float], Respond] | None = None
    """Address, model, environment variable of the key (None: no key) and longest time (s) of another model."""
    kept: Callable[[Turn], Awaitable[Turn]] = everything
    """What may be stored of a request: the turn without what its layers hide. `compose` sets it."""


def compose(layers: Sequence[tuple[Spec, ModuleType]], inner: Respond, kit: Kit) -> Respond:
    """Wrap `inner` in layers given outermost first, so that a request passes them in that order.

    A layer with `around_model` also wraps the model directly, inside all other layers. A layer with `kept` decides what of a
    request may be stored, wherever it is in the order.
    """
    hiding = [module.kept(spec, kit) for spec, module in layers if hasattr(module, "kept")]

    async def kept(turn: Turn) -> Turn:
        for without in hiding:
            turn = await without(turn)
        return turn

    kit = replace(kit, kept=kept)
    for spec, module in reversed(layers):
        if (around_model := getattr(module, "around_model", None)) is not None:
            inner = around_model(spec, inner, kit)
    for spec, module in reversed(layers):
        inner = module.wrap(spec, inner, kit)
    return inner


Body: TypeAlias = Callable[[Turn, Respond], AsyncIterator[Event]]


class Meter:
    """A stopwatch in seconds that can be paused."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._total_s, self._since = clock, 0.0, 0.0

    def start(self) -> None:
        self._since = self._clock()

    def stop(self) -> None:
        self._total_s += self._clock() - self._since

    @property
    def ms(self) -> float:
        return 1000 * self._total_s


class Outside:
    """Yield inner events and pause the meter while waiting for the next one."""

    def __init__(self, events: AsyncIterator[Event], meter: Meter) -> None:
        self._events, self._meter = events, meter

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        self._meter.stop()
        try:
            return await anext(self._events)
        finally:
            self._meter.start()


def timed(by: str, body: Body, inner: Respond, clock: Callable[[], float]) -> Respond:
    """Return the layer `body` around `inner`, with its own time as the last event before Done."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        meter = Meter(clock)
        opened: list[AsyncIterator[Event]] = []

        def within(turn: Turn) -> AsyncIterator[Event]:
            opened.append(inner(turn))
            return Outside(opened[-1], meter)

        events = body(turn, within)
        try:
            while True:
                meter.start()
                try:
                    event = await anext(events)
                except StopAsyncIteration:
                    return
                finally:
                    meter.stop()
                if isinstance(event, Done):
                    yield Timing(by, meter.ms)
                yield event
        finally:
            for each in (events, *reversed(opened)):
                await close(each)

    return respond


async def close(events: AsyncIterator[Event]) -> None:
    """Close an answer that will not be read to its end, so that its engine slot is free at once."""
    aclose = getattr(events, "aclose", None)
    if aclose is not None:
        await aclose()
