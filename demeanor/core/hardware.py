"""The machine: threads, allocator, number format. `prepare()` must run before torch is imported.

Facts behind it (2 cores): pinned threads lose nothing when idle and keep 2.6x more under contention; glibc's default
mmap threshold costs up to 28% of a training step in page faults.
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
    """Set thread counts and the allocator for this process and return the number of threads.

    DEMEANOR_MALLOC=system leaves the allocator alone; OMP_NUM_THREADS is respected.
    """
    count = threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    cores = sorted(os.sched_getaffinity(0))
    if 1 < count <= len(cores) and "OMP_PROC_BIND" not in os.environ:
        os.environ.setdefault("GOMP_CPU_AFFINITY", " ".join(map(str, cores[:count])))
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # a waiting thread soon sleeps: others may need the core
    if os.environ.get("DEMEANOR_MALLOC") != "system" and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, -1)
            libc.mallopt(_M_TOP_PAD, 64 << 20)
    return count


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of this CPU as Linux names them; empty where unknown."""
    try:
        line = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("flags"))
    except (OSError, StopIteration):
        return frozenset()
    return frozenset(line.split(":", 1)[1].split())


def compiler() -> str | None:
    """The C++ compiler that torch.compile would use, None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def device() -> torch.device:
    """CUDA when present, else CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast_dtype() -> torch.dtype | None:
    """bf16 where matrix products run faster in it (CUDA, AMX, AVX512-BF16), else None: stay in fp32."""
    import torch

    if torch.cuda.is_available():
        return torch.bfloat16
    return torch.bfloat16 if cpu_flags() & {"amx_bf16", "avx512_bf16"} else None


def unbind() -> None:
    """Let this thread, and those it starts, run on any core of the process: OpenMP binds the main thread to one, and threads inherit it."""
    if _CORES:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, _CORES)
