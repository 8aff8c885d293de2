"""Training beside other processes: how much of the cores they use, and how many threads are fastest then.

In: the work of each step (FLOPs). Out: torch's number of threads between steps, and a few words for the progress line. A
thread that shares its core makes the others wait at the end of every operation, so that fewer threads can be faster.
Numbers stay the same: threads change only where products have the same bits with one thread and with all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import torch

from demeanor.core import hardware

CROWDED = 0.3  # cores that other processes use, from which on fewer threads are tried
AGAIN_S = 30.0  # until the other number of threads is tried again
SHORT_S = 0.2  # steps are measured together until they took so long
LEAST_GAIN = 1.05  # how many times as fast fewer threads must be
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

Busy = Callable[[], tuple[float, float] | None]
"""CPU seconds of all processes on this process's cores, and of this process, since some moment; None if unknown."""


def busy() -> tuple[float, float] | None:
    """Read /proc/stat and this process's own times."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        mine = {f"cpu{core}" for core in hardware.cores()}
        rows = [line.split() for line in lines if line.split(maxsplit=1)[0] in mine]
        # user, nice, system, irq, softirq, steal: columns 1, 2, 3, 6, 7, 8
        total = sum(int(row[column]) for row in rows for column in (1, 2, 3, 6, 7, 8)) / TICKS
    except (OSError, ValueError, IndexError):
        return None
    own = os.times()
    return total, own.user + own.system


def use(count: int, most: int) -> None:
    """Set torch's threads; a thread that works alone may run on any core, so that it finds the free one."""
    torch.set_num_threads(count)
    if count == 1 < most:
        hardware.unbind()
    else:
        hardware.bind()


class Threads:
    """The number of threads of a run: all of them, or fewer while others need the cores and fewer are faster."""

    def __init__(
        self,
        most: int,
        *,
        safe: Callable[[], bool],
        read: Busy = busy,
        use: Callable[[int, int], None] = use,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`safe`: whether the number of threads changes no bit; asked once, when others first need the cores."""
        self.most, self.count, self.others = most, most, 0.0
        self._safe, self._read, self._use, self._clock = safe, read, use, clock
        self._rates: dict[int, float] = {}
        self._tried_s = -AGAIN_S
        self._allowed: bool | None = None
        self._begin()

    def _begin(self) -> None:
        self._since, self._seen, self._work = self._clock(), self._read(), 0.0

    def after(self, work: float) -> None:
        """Count a step's work, and choose the threads of the next."""
        self._work += work
        seconds, seen = self._clock() - self._since, self._read()
        if seconds < SHORT_S:
            return
        if seen is not None and self._seen is not None and self.most > 1:
            others = (seen[0] - self._seen[0]) - (seen[1] - self._seen[1])
            self.others = max(0.0, others / seconds)
            self._rates[self.count] = self._work / seconds
            self._choose()
        self._begin()

    def _choose(self) -> None:
        if self.others < CROWDED:
            self._rates.clear()
            self._set(self.most)
            return
        if self._allowed is None:
            self._allowed = self._safe()
        if not self._allowed:
            return
        fewer = max(1, self.most - max(1, round(self.others)))
        now = self._clock()
        if now - self._tried_s >= AGAIN_S:  # measure both again, the other one first
            self._tried_s = now
            self._rates = {self.count: self._rates[self.count]}
        untried = [n for n in (fewer, self.most) if n not in self._rates]
        faster = self._rates.get(fewer, 0.0) > LEAST_GAIN * self._rates.get(self.most, 0.0)
        self._set(untried[0] if untried else fewer if faster else self.most)

    def _set(self, count: int) -> None:
        if count != self.count:
            self.count = count
            self._use(count, self.most)

    def close(self) -> None:
        """Use all threads again."""
        self._set(self.most)

    def __str__(self) -> str:
        """For the progress line; empty while nobody else needs the cores."""
        if self.others < CROWDED:
            return ""
        said = f"others use {self.others:.1f} of {self.most} cores"
        return said if self.count == self.most else f"{said}, training uses {self.count}"


def same_bits(shapes: Collection[tuple[int, int]], dtype: torch.dtype) -> bool:
    """Whether products with weights of these shapes (out, in) have the same bits with one thread and with all."""
    cut = {(min(out, hardware.WIDEST), min(inside, hardware.WIDEST)) for out, inside in shapes}
    return _same_bits(tuple(sorted(cut)), dtype)


@cache
def _same_bits(shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> bool:
    threads, draw = torch.get_num_threads(), torch.Generator().manual_seed(0)
    given = [
        tuple(torch.randn(n, m, generator=draw).to(dtype) for n, m in ((300, i), (300, o), (o, i)))
        for o, i in shapes
    ]

    def products() -> list[torch.Tensor]:
        return [y for x, g, w in given for y in (x @ w.T, g @ w, g.T @ x)]

    try:
        torch.set_num_threads(1)
        one = products()
        torch.set_num_threads(threads)
        return all(torch.equal(x, y) for x, y in zip(one, products(), strict=True))
    finally:
        torch.set_num_threads(threads)
