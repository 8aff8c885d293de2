"""Loaded weights under a memory budget: the least recently used that nobody is using make room for others.

In: a function that loads a stage's weights. Out: the weights, or an engine that loads them when somebody asks and keeps them while
he is answered.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from demeanor.engine.local import LocalEngine, Piece, Request


class Loaded(Protocol):
    """What a shelf holds: anything with an engine."""

    @property
    def engine(self) -> LocalEngine: ...


W = TypeVar("W", bound=Loaded)


class WeightsCache(Generic[W]):
    """Weights by stage, the least recently used first; `budget_bytes` None: all stay."""

    def __init__(self, load: Callable[[str], W], budget_bytes: int | None = None) -> None:
        self._load, self.budget_bytes = load, budget_bytes
        self._held: dict[str, W] = {}
        self._users: Counter[str] = Counter()
        self._lock = threading.RLock()

    def get(self, stage: str) -> W:
        """The weights of a stage, loaded if they are not; others may have to go."""
        with self._lock:
            found = self._held.pop(stage, None)
            if found is None:
                self._make_room(0)
                found = self._load(stage)
            self._held[stage] = found  # last: most recently used
            self._make_room(1)
            return found

    def take(self, stage: str) -> W:
        """As `get`, and they stay until `put_back`."""
        with self._lock:
            self._users[stage] += 1
            try:
                return self.get(stage)
            except BaseException:
                self._users[stage] -= 1
                raise

    def put_back(self, stage: str) -> None:
        """One user less."""
        with self._lock:
            self._users[stage] -= 1
            self._make_room(1)

    @property
    def stages(self) -> list[str]:
        """What is loaded now, least recently used first."""
        return list(self._held)

    def held(self) -> dict[str, W]:
        """What is loaded now, by stage."""
        with self._lock:
            return dict(self._held)

    def put(self, stage: str, loaded: W) -> None:
        """Hold weights that somebody else has loaded."""
        with self._lock:
            self._held[stage] = loaded

    def drop(self, stage: str) -> None:
        """Hold a stage's weights no longer, and leave their engine to others."""
        with self._lock:
            self._held.pop(stage, None)

    def close(self) -> None:
        """Close every engine."""
        with self._lock:
            while self._held:
                self._held.popitem()[1].engine.close()

    def _make_room(self, kept: int) -> None:
        """Close idle engines, the oldest first, while the budget is exceeded; the newest `kept` stay whatever they weigh."""
        if self.budget_bytes is None:
            return
        for stage in list(self._held)[: len(self._held) - kept]:
            if sum(x.engine.num_bytes for x in self._held.values()) <= self.budget_bytes:
                return
            if not self._users[stage]:
                self._held.pop(stage).engine.close()


class LeasedEngine(Generic[W]):
    """An engine that is on the shelf, or will be when it is asked."""

    def __init__(self, shelf: WeightsCache[W], stage: str) -> None:
        self._weights, self._stage = shelf, stage

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        """As LocalEngine.stream; loads the weights first, in a thread, if they had to go."""
        loaded = await asyncio.to_thread(self._weights.take, self._stage)
        try:
            async with aclosing(loaded.engine.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._weights.put_back(self._stage)
