"""The number format of training: measured on the shapes of the model, with a slow obvious twin."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from demeanor.core import hardware

SHAPES = [(256, 256), (688, 256), (256, 688)]
FLAGS = frozenset({"avx512_bf16"})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A CPU with flags and measured seconds (fp32, bf16), without CUDA."""

    def set_to(flags: frozenset[str], seconds: tuple[float, float] | None) -> None:
        def measured(shapes: object) -> tuple[float, float]:
            assert seconds is not None, "nothing is measured here"
            return seconds

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(hardware, "cpu_flags", lambda: flags)
        monkeypatch.setattr(hardware, "product_seconds", measured)

    return set_to


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [((2.0, 1.0), torch.bfloat16), ((1.0, 1.5), None), ((1.05, 1.0), None), ((1.12, 1.0), torch.bfloat16)],
    ids=["faster", "slower, as on AVX512 without AMX", "a tie", "a little faster"],
)
def test_bf16_is_taken_only_where_it_is_measured_to_be_faster(
    machine: Callable[..., None], seconds: tuple[float, float], wanted: torch.dtype | None
) -> None:
    machine(FLAGS, seconds)
    assert hardware.training_dtype(SHAPES) is wanted


def test_a_cpu_without_bf16_trains_in_fp32_and_measures_nothing(machine: Callable[..., None]) -> None:
    machine(frozenset({"avx2"}), None)
    assert hardware.training_dtype(SHAPES) is None


def plain_seconds(dtype: torch.dtype) -> float:
    """The slow twin: the three products of forward and backward, written out, best of six, one thread's time."""
    best = float("inf")
    for _ in range(6):
        began = time.thread_time()
        for out, inside in SHAPES:
            x, w = torch.ones(512, inside), torch.ones(out, inside)
            narrow_x, narrow_w = x.to(dtype), w.to(dtype)
            y = narrow_x @ narrow_w.T
            slope = torch.ones_like(y)
            for result in (slope @ narrow_w, slope.T @ narrow_x):
                result.float()
        best = min(best, time.thread_time() - began)
    return best


def test_the_measured_ratio_is_that_of_plain_products_and_takes_little_time() -> None:
    threads = torch.get_num_threads()
    began = time.thread_time()
    wide_s, narrow_s = hardware.product_seconds(tuple(SHAPES))
    assert time.thread_time() - began < 4.0, "under a second on a quiet machine"
    torch.set_num_threads(1)
    twin = plain_seconds(torch.float32) / plain_seconds(torch.bfloat16)
    torch.set_num_threads(threads)
    assert twin / 3 < wide_s / narrow_s < 3 * twin
    assert hardware.product_seconds(tuple(SHAPES)) == (wide_s, narrow_s)  # once per process
    assert torch.get_num_threads() == threads


def test_a_large_vocabulary_is_measured_in_little_time_and_memory() -> None:
    began = time.thread_time()
    assert min(hardware.product_seconds(((151936, 1024),))) > 0
    assert time.thread_time() - began < 5.0


def test_the_cpu_has_a_name() -> None:
    assert hardware.cpu_name().strip()


def test_a_child_process_may_use_every_core_although_its_parent_is_bound_to_one() -> None:
    if len(hardware.cores()) < 2:
        pytest.skip("needs two cores")
    command = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(hardware.cores())})
        with hardware.unbound():
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) == len(hardware.cores())
    finally:
        os.sched_setaffinity(0, before)


def test_the_limits_of_all_control_groups_around_this_process_count(tmp_path: Path) -> None:
    """A service's `MemoryMax` stands in its own group or its slice's, a container's at the root; cgroup 1 has another name and place."""
    groups, mount = tmp_path / "cgroup", tmp_path / "mount"
    limits = {
        "memory.max": "9000",
        "app.slice/memory.max": "5000",
        "app.slice/x.service/memory.max": "max",
        "memory/app/memory.limit_in_bytes": "7000",
        "cpu/app/memory.limit_in_bytes": "1",
        "other.slice/memory.max": "2",
    }
    for name, text in limits.items():
        (mount / name).parent.mkdir(parents=True, exist_ok=True)
        (mount / name).write_text(f"{text}\n")
    groups.write_text("5:cpu:/app\n4:hugetlb,memory:/app/gone\n1:name=systemd:/\n0::/app.slice/x.service\n")
    assert sorted(set(hardware.group_limits(groups, mount))) == [5000, 7000, 9000]
    assert list(hardware.group_limits(tmp_path / "none", mount)) == [9000]
