"""The machine: threads, allocator, devices and number formats; `prepare()` must run before torch is imported.

Measured on 2 cores: pinned threads lose nothing when idle and keep 2.6x more under contention; glibc's
default mmap threshold costs up to 28% of a training step in page faults.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CORES = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@cache
def prepare(threads: int | None = None) -> int:
    """Set thread counts and the allocator for this process; returns the number of threads.

    DEMEANOR_MALLOC=system keeps the allocator; OMP_NUM_THREADS is respected.
    """
    count = threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cores = sorted(os.sched_getaffinity(0))
    if 1 < count <= len(cores) and "OMP_PROC_BIND" not in os.environ:
        os.environ.setdefault("GOMP_CPU_AFFINITY", " ".join(map(str, cores[:count])))
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # waiting threads soon sleep: others may need the core
    if os.environ.get("DEMEANOR_MALLOC") != "system" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, -1)
            libc.mallopt(_M_TOP_PAD, 64 << 20)
    return count


@cache
def cpu_flags() -> frozenset[str]:
    """Return the CPU's instruction-set flags as Linux names them; empty if unknown."""
    try:
        line = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags"))
    except (OSError, StopIteration):
        return frozenset()
    return frozenset(line.split(":", 1)[1].split())


def cpu_name() -> str:
    """Return the CPU's name as Linux or the platform gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def compiler() -> str | None:
    """Return the C++ compiler that torch.compile would use, None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def device() -> torch.device:
    """Return CUDA if available, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


ROWS, WIDEST, WORK, REPEATS = 512, 1024, 8e9, 4
FASTER = 1.1
"""How many times as fast as fp32 bf16 must be measured: near a tie the more precise format is taken."""


def training_dtype(shapes: Collection[tuple[int, int]]) -> torch.dtype | None:
    """Return bf16 if training's products with weights of these shapes (out, in) are faster in it, else None.

    None means fp32. A CPU that knows bf16 is measured, because some multiply slower in it.
    """
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if not cpu_flags() & {"amx_bf16", "avx512_bf16"}:
        return None
    wide_s, narrow_s = product_seconds(tuple(sorted(set(shapes))))
    return torch.bfloat16 if wide_s > FASTER * narrow_s else None


@cache
def product_seconds(shapes: tuple[tuple[int, int], ...]) -> tuple[float, float]:
    """Measure the products of a step, forward and backward, in fp32 and in bf16: CPU seconds of each.

    Takes about a second: matrices are cut to 1024, since larger ones run at the same speed, so that there are enough rows:
    with few, rounding the weights would count more than the products. One thread's own time counts, the best
    of four rounds in turns, so that neighbours on a busy machine change the answer little.
    """
    import torch

    cut = sorted({(min(out, WIDEST), min(inside, WIDEST)) for out, inside in shapes})
    work = 6.0 * sum(out * inside for out, inside in cut)
    rows = max(16, min(ROWS, int(WORK / max(work, 1.0))))
    tensors = [
        (torch.ones(rows, i, requires_grad=True), torch.ones(o, i, requires_grad=True)) for o, i in cut
    ]
    best, threads = [float("inf"), float("inf")], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(REPEATS):
            for narrow in (False, True):
                began = time.thread_time()
                for x, weight in tensors:
                    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
                        y = torch.nn.functional.linear(x, weight)
                    torch.autograd.grad(y, (x, weight), torch.ones_like(y))
                best[narrow] = min(best[narrow], time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)
    return best[0], best[1]


@cache
def memory_bytes() -> int | None:
    """Return the memory that this process may use: the machine's, or that of its container or service; None if unknown."""
    found = list(group_limits())
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=None)


def group_limits(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Yield the memory limits of the control groups that this process is in, and of those around them (Linux, cgroup 1 and 2)."""
    lines = ["0::/", "0:memory:/"]  # what a container sees, though the file may name another
    with contextlib.suppress(OSError):
        lines += groups.read_text().splitlines()
    for line in lines:
        _, kinds, own = [*line.split(":", 2), "", ""][:3]
        if kinds and "memory" not in kinds.split(","):
            continue
        root, name = (mount / "memory", "memory.limit_in_bytes") if kinds else (mount, "memory.max")
        for group in (Path(own), *Path(own).parents):
            with contextlib.suppress(ValueError, OSError):  # the text "max" where there is no limit
                yield int((root / group.relative_to("/") / name).read_text())


def memory_on_demand(num_bytes: int) -> mmap.mmap:
    """Return zeros to which the system gives memory only as they are written."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    found = mmap.mmap(-1, num_bytes, **private)  # shared memory would stay when it is given back
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux: a page of 2 MB would hold thousands of tokens of one head
        found.madvise(mmap.MADV_NOHUGEPAGE)
    return found


def free_bytes() -> int | None:
    """Return the memory that no program uses now, or that the system can take back from its caches; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None


def cores() -> set[int]:
    """Return the cores that this process was given; empty if unknown."""
    return set(_CORES)


def unbind() -> None:
    """Let this thread and its children run on any core: OpenMP binds the main thread to one core."""
    if _CORES:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, _CORES)


@contextlib.contextmanager
def unbound() -> Iterator[None]:
    """Start child processes here: they inherit the cores of the thread that starts them, and OpenMP left it one."""
    unbind()
    try:
        yield
    finally:
        bind()


def bind() -> None:
    """Undo `unbind` for this thread: back to the first core that `prepare` gave to OpenMP, if it gave any."""
    given = os.environ.get("GOMP_CPU_AFFINITY", "").split()
    if given and given[0].isdigit() and int(given[0]) in _CORES:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {int(given[0])})
