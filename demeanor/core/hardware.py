"""The machine: threads, allocator, devices and number formats; `prepare()` must run before torch is imported.

Measured on 2 cores: pinned threads lose nothing when idle and keep 2.6x more under contention; glibc's
default mmap threshold costs up to 28% of a training step in page faults.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
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


def compiler() -> str | None:
    """Return the C++ compiler that torch.compile would use, None if there is none."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def device() -> torch.device:
    """Return CUDA if available, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype() -> torch.dtype | None:
    """Return bf16 if matrix products are faster in it (CUDA, AMX, AVX512-BF16), else None for fp32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16
    return torch.bfloat16 if cpu_flags() & {"amx_bf16", "avx512_bf16"} else None


@cache
def memory_bytes() -> int | None:
    """Return the memory that this process may use: the machine's or its container's; None if unknown."""
    found = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):  # the text "max" where there is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found, default=None)


def unbind() -> None:
    """Let this thread and its children run on any core: OpenMP binds the main thread to one core."""
    if _CORES:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, _CORES)
