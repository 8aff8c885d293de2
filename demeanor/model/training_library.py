"""training.cpp as a library: compiled on first use, called with tensors.

In: the name of one of its functions, tensors and numbers. Out: whether there is such a library; results lie in the tensors.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from demeanor.model.compiled import compiled

log = logging.getLogger("demeanor.model")

SOURCE = Path(__file__).with_name("training.cpp")


@cache
def build() -> ctypes.CDLL | None:
    """Compile or load training.cpp; None if that fails, if torch has no OpenMP, or if DEMEANOR_NATIVE=0."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if os.environ.get("DEMEANOR_NATIVE", "1") == "0" or compiler is None:
        return None
    try:
        mapped = Path("/proc/self/maps").read_text().splitlines()
        openmp = next((line.split()[-1] for line in mapped if "libgomp" in line), None)
        if openmp is None:
            return None
        ctypes.CDLL(openmp, ctypes.RTLD_GLOBAL)  # already loaded by torch: its symbols become visible
        return ctypes.CDLL(str(compiled(SOURCE, compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s was not compiled; training uses torch, which is slower: %s", SOURCE.name, error)
        return None


def call(name: str, *given: Tensor | int | float | None) -> bool:
    """Call a function of training.cpp; False if there is none."""
    library = build()
    if library is None:
        return False
    arguments: list[Any] = []
    for x in given:
        if isinstance(x, Tensor):
            assert x.is_contiguous(), f"{name}: wanted rows without gaps"
            arguments.append(ctypes.c_void_p(x.data_ptr()))
        elif isinstance(x, float):
            arguments.append(ctypes.c_float(x))
        else:
            arguments.append(ctypes.c_void_p(None) if x is None else ctypes.c_int64(x))
    getattr(library, name)(*arguments)
    return True
