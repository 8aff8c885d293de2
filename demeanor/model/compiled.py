"""C++ files of this folder as shared libraries: compiled on first use into the user's cache folder.

In: a source file and a compiler. Out: the library's path, named by everything that it was compiled from.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from demeanor.core.files import private_cache

FLAGS = (
    "-std=c++20",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-pthread",
)
KERNELS = Path(__file__).with_name("kernels")  # headers that the sources include


def compiled(source: Path, compiler: str) -> Path:
    """Return the library of a C++ source file, compiled on first use; raises OSError or SubprocessError."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    sources = [source, *sorted(KERNELS.glob("*.h"))]
    identity = "\0".join(
        (
            *(x.read_text("utf-8") for x in sources),
            compiler,
            version,
            *FLAGS,
            platform.machine(),
            _processor(),
        )
    )
    folder = private_cache("compiled")
    library = folder / f"{source.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / library.name
            subprocess.run(
                [compiler, *FLAGS, str(source), "-o", str(made)],
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
            )
            os.replace(made, library)
    return library


def _processor() -> str:
    try:
        return next(
            line for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if line.startswith("flags")
        )
    except (OSError, StopIteration):
        return platform.processor()
