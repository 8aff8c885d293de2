"""The number of threads beside other processes: a scripted machine, and real products."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch

from demeanor.core import hardware
from demeanor.training.contention import AGAIN_S, Threads, busy, same_bits, use


class Machine:
    """A clock, other processes that use `others` cores, and the speed of training with each number of threads."""

    def __init__(self, most: int = 2, *, safe: bool = True) -> None:
        self.now_s = self.total_s = self.own_s = self.others = 0.0
        self.speed: dict[int, float] = {n: float(n) for n in range(1, most + 1)}
        self.asked = 0
        self.used: list[int] = []
        self.threads = Threads(
            most,
            safe=self._safe(safe),
            read=self._read,
            use=lambda count, most: self.used.append(count),
            clock=lambda: self.now_s,
        )

    def _safe(self, safe: bool) -> Callable[[], bool]:
        def asked() -> bool:
            self.asked += 1
            return safe

        return asked

    def _read(self) -> tuple[float, float]:
        return self.total_s, self.own_s

    def steps(self, count: int, work: float = 1.0) -> list[int]:
        """Run steps of `work`; returns the threads of each."""
        found = []
        for _ in range(count):
            seconds = work / self.speed[self.threads.count]
            self.now_s += seconds
            self.own_s += seconds * self.threads.count
            self.total_s += seconds * (self.threads.count + self.others)
            found.append(self.threads.count)
            self.threads.after(work)
        return found


def test_alone_it_uses_all_threads_and_asks_nothing() -> None:
    machine = Machine()
    assert machine.steps(5) == [2] * 5
    assert (machine.used, machine.asked, str(machine.threads)) == ([], 0, "")


def test_beside_a_busy_core_it_measures_both_and_keeps_the_faster_until_the_core_is_free() -> None:
    machine = Machine()
    machine.steps(2)
    machine.others, machine.speed = 1.0, {1: 1.0, 2: 0.5}
    assert machine.steps(6) == [2, 1, 1, 1, 1, 1]
    assert str(machine.threads) == "others use 1.0 of 2 cores, training uses 1"
    machine.others, machine.speed = 0.0, {1: 1.0, 2: 2.0}
    assert machine.steps(3) == [1, 2, 2]
    assert (machine.used, machine.asked) == ([1, 2], 1)


def test_where_all_threads_are_faster_they_stay_and_the_line_says_who_is_there() -> None:
    machine = Machine()
    machine.others, machine.speed = 0.4, {1: 1.0, 2: 1.7}
    assert machine.steps(5) == [2, 1, 2, 2, 2]
    assert str(machine.threads) == "others use 0.4 of 2 cores"


def test_it_tries_again_after_a_while() -> None:
    machine = Machine()
    machine.others, machine.speed = 1.0, {1: 1.0, 2: 0.5}
    machine.steps(4)
    machine.speed = {1: 1.0, 2: 1.9}
    assert 2 not in machine.steps(int(AGAIN_S) - 6)
    later = machine.steps(8)
    assert later[-1] == 2


def test_many_cores_lose_as_many_threads_as_others_use() -> None:
    machine = Machine(8)
    machine.others, machine.speed = 3.0, {8: 2.0, 5: 4.0}
    assert machine.steps(3) == [8, 5, 5]


def test_where_threads_change_bits_they_never_change() -> None:
    machine = Machine(safe=False)
    machine.others, machine.speed = 1.0, {1: 1.0, 2: 0.5}
    assert machine.steps(4) == [2] * 4
    assert (machine.asked, str(machine.threads)) == (1, "others use 1.0 of 2 cores")


def test_short_steps_are_measured_together() -> None:
    machine = Machine()
    machine.others, machine.speed = 1.0, {1: 1.0, 2: 0.5}
    assert machine.steps(12, work=0.015) == [2] * 7 + [1] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_of_products_are_compared_with_one_thread_and_with_all(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = same_bits([(96, 64), (64, 96)], dtype)
        assert torch.get_num_threads() == 2
        draw = torch.Generator().manual_seed(0)
        x, w = (torch.randn(n, 64, generator=draw).to(dtype) for n in (300, 96))
        two = x @ w.T
        torch.set_num_threads(1)
        assert found <= torch.equal(two, x @ w.T)  # equal products are promised only where they are
    finally:
        torch.set_num_threads(threads)


def test_one_thread_of_several_may_run_on_any_core_and_all_are_bound_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cores, threads = sorted(hardware.cores()), torch.get_num_threads()
    if len(cores) < 2 or not hasattr(os, "sched_setaffinity"):
        pytest.skip("one core here")
    monkeypatch.setenv("GOMP_CPU_AFFINITY", " ".join(map(str, cores)))
    own = os.sched_getaffinity(0)
    try:
        use(2, 2)
        assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (2, {cores[0]})
        use(1, 2)
        assert (torch.get_num_threads(), os.sched_getaffinity(0)) == (1, set(cores))
    finally:
        torch.set_num_threads(threads)
        os.sched_setaffinity(0, own)


def test_this_process_and_all_of_them_are_read() -> None:
    found = busy()
    if found is None:
        pytest.skip("no /proc/stat here")
    assert found[0] > 0
    assert found[1] > 0
