"""One bound on the memory for keys and values of all engines that share it, by default all engines of a process.

In: engines' pages, in use and kept for later prompts. Out: whether a sequence may start, and room for one more page. Any engine may take a page
that no running sequence uses: the one that was not used for the longest time is dropped first, in whichever engine it is. A running sequence
keeps its pages, and starts only when all that it may write fits. Engines that wait for memory are served in order of arrival.
"""

from __future__ import annotations

import itertools
import math
import threading
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from demeanor.core import hardware
from demeanor.core.errors import EngineError

SHARE = 8
"""Without a setting all caches together take up to 1/SHARE of the memory that the weights leave: a laptop has other programs open."""
LEAST_SHARE = 16
"""What the largest weights leave of the machine's memory is taken to be at least 1/LEAST_SHARE of it."""
CONTEXT_SHARE = 2
"""If one whole context needs more than 1/SHARE, the bound is its size, up to 1/CONTEXT_SHARE of what the weights leave."""


class Waiter(Protocol):
    """Who waits for pages: an engine with its sequences, or a text."""

    page_bytes: int


class PageHolder(Protocol):
    """An engine's pages; the methods are called with the budget's lock."""

    page_bytes: int

    def promised(self) -> int:
        """Return how many pages running sequences have and may still ask for."""

    def held(self) -> int:
        """Return how many pages are in memory."""

    def oldest(self) -> int | None:
        """Return when the page that is dropped first was used; 0: it holds nothing; None: all pages are in use."""

    def give_back(self) -> None:
        """Return the memory of that page to the system."""


class CacheBudget:
    """Bytes for the keys and values of several engines; None: the default for this machine."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._given, self._least, self._weights = limit_bytes, 0, 0
        self._holders: WeakSet[PageHolder] = WeakSet()
        self._waiting: WeakKeyDictionary[Waiter, tuple[int, int]] = WeakKeyDictionary()  # turn, bytes
        self._turns, self._uses = itertools.count(), itertools.count(1)
        self.lock = threading.RLock()  # nothing is waited for while it is held

    @property
    def limit_bytes(self) -> float:
        """The bound; infinite if the machine's memory is unknown and nothing was set."""
        if self._given is not None:
            return self._given
        memory = hardware.memory_bytes()
        if memory is None:
            return math.inf
        left = max(memory - self._weights, memory // LEAST_SHARE)
        return max(left // SHARE, min(self._least, left // CONTEXT_SHARE))

    @property
    def free_bytes(self) -> float:
        """The bytes of the bound that no page takes."""
        with self.lock:
            return self.limit_bytes - self._bytes_held()

    def num_pages(self, page_bytes: int, context: int, most: int, weights_bytes: int = 0) -> int:
        """Return how many pages an engine's table may name: `most`, or what the whole bound holds; `context` are those of its longest
        context, `weights_bytes` what its weights take: beside large ones the bound is lower, for earlier engines too. Raises EngineError if that is
        no token."""
        with self.lock:
            self._least = max(self._least, (context + 1) * page_bytes)
            self._weights = max(self._weights, weights_bytes)  # engines of one base share theirs
        if self.limit_bytes < 2 * page_bytes:
            raise EngineError(
                f"a cache of {self.limit_bytes / 2**30:.4g} GiB holds no token of this model; wanted at least "
                f"{2 * page_bytes / 2**30:.4g} GiB, two pages of keys and values"
            )
        return int(min(most, self.limit_bytes / page_bytes))

    def join(self, holder: PageHolder) -> None:
        """Count an engine's pages from now on."""
        with self.lock:
            self._holders.add(holder)

    def leave(self, holder: PageHolder) -> None:
        """Count an engine's pages no longer."""
        with self.lock:
            self._holders.discard(holder)
            self.withdraw(holder)

    def admits(self, waiter: Waiter, pages: int) -> bool:
        """Return whether so many more pages can be promised; if not, `waiter` waits behind those that waited before.

        Who competes with nobody gets what the engine's table holds: the bound may be lower now, and then it would wait forever.
        """
        with self.lock:
            turn, _ = self._waiting.get(waiter, (math.inf, 0))
            earlier = sum(size for before, size in self._waiting.values() if before < turn)
            promised = sum(one.promised() * one.page_bytes for one in self._holders)
            needed = pages * waiter.page_bytes
            if promised + earlier + needed <= self.limit_bytes or not promised + earlier:
                self.withdraw(waiter)
                return True
            self._waiting[waiter] = (next(self._turns) if turn == math.inf else int(turn), needed)
            return False

    def withdraw(self, waiter: Waiter) -> None:
        """It waits for memory no longer."""
        with self.lock:
            self._waiting.pop(waiter, None)

    def grow(self, holder: PageHolder) -> bool:
        """Make room for one more page of an engine. False: a page of its own has to be dropped, if it has any."""
        with self.lock:
            while self._bytes_held() + holder.page_bytes > self.limit_bytes:
                oldest = min(
                    (one for one in self._holders if one.oldest() is not None),
                    key=lambda one: one.oldest() or 0,
                    default=None,
                )
                if oldest is None or oldest is holder:
                    return False
                oldest.give_back()
            return True

    def used_now(self) -> int:
        """Return a number that is greater for every later use."""
        return next(self._uses)

    def _bytes_held(self) -> int:
        return sum(one.held() * one.page_bytes for one in self._holders)


PROCESS = CacheBudget()
"""The bound of every engine that gets no other."""
