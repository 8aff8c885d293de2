"""Loaded weights under a memory budget: the least recently used idle weights are unloaded first.

In: a function that loads a stage's weights. Out: the weights, or an engine that loads them on demand and
keeps them while a request runs.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, Protocol, TypeVar

from demeanor.engine.local import LocalEngine, Piece, Request


class Loaded(Protocol):
    """What the cache stores: anything with an engine."""

    @property
    def engine(self) -> LocalEngine: ...


W = TypeVar("W", bound=Loaded)


class WeightsCache(Generic[W]):
    """Weights by stage, least recently used first; `budget_bytes` None is no limit."""

    def __init__(self, load: Callable[[str], W], budget_bytes: int | None = None) -> None:
        self._load, self.budget_bytes = load, budget_bytes
        self._loaded: dict[str, W] = {}
        self._users: Counter[str] = Counter()
        self._lock = threading.RLock()

    def get(self, stage: str) -> W:
        """Return the weights of a stage and load them if needed; others may be unloaded."""
        with self._lock:
            found = self._loaded.pop(stage, None)
            if found is None:
                self._make_room(0)
                found = self._load(stage)
            self._loaded[stage] = found  # last: most recently used
            self._make_room(1)
            return found

    def acquire(self, stage: str) -> W:
        """Return the weights as `get` does, and keep them loaded until `release`."""
        with self._lock:
            self._users[stage] += 1
            try:
                return self.get(stage)
            except BaseException:
                self._users[stage] -= 1
                raise

    def release(self, stage: str) -> None:
        """End one use that `acquire` began."""
        with self._lock:
            self._users[stage] -= 1
            self._make_room(1)

    @property
    def stages(self) -> list[str]:
        """The loaded stages, least recently used first."""
        return list(self._loaded)

    def loaded(self) -> dict[str, W]:
        """Return what is loaded now, by stage."""
        with self._lock:
            return dict(self._loaded)

    def put(self, stage: str, loaded: W) -> None:
        """Store weights that were loaded elsewhere."""
        with self._lock:
            self._loaded[stage] = loaded

    def drop(self, stage: str) -> None:
        """Remove a stage's weights without closing their engine."""
        with self._lock:
            self._loaded.pop(stage, None)

    def close(self) -> None:
        """Close every engine."""
        with self._lock:
            while self._loaded:
                self._loaded.popitem()[1].engine.close()

    def _make_room(self, kept: int) -> None:
        """Close idle engines, oldest first, while the budget is exceeded; the newest `kept` always stay."""
        if self.budget_bytes is None:
            return
        for stage in list(self._loaded)[: len(self._loaded) - kept]:
            if sum(x.engine.num_bytes for x in self._loaded.values()) <= self.budget_bytes:
                return
            if not self._users[stage]:
                self._loaded.pop(stage).engine.close()


class LeasedEngine(Generic[W]):
    """An engine whose weights are loaded when a request comes and kept while it runs."""

    def __init__(self, weights: WeightsCache[W], stage: str) -> None:
        self._weights, self._stage = weights, stage

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield pieces as LocalEngine.stream does; loads the weights first, in a thread, if needed."""
        loaded = await asyncio.to_thread(self._weights.acquire, self._stage)
        try:
            async with aclosing(loaded.engine.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._weights.release(self._stage)
