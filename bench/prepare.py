"""Weights that several parts of `make bench` read: our folder in q8_0, and GGUF files for llama.cpp where they lack.

python -m bench.prepare MODEL MADE GGUF     # folders: of the model, of ours, of GGUF files
"""

from __future__ import annotations

import sys
from pathlib import Path

from demeanor.core import hardware

hardware.prepare(None)

from bench.smollm2_speed import gguf_file, prepared  # noqa: E402

FORMS = ("Q8_0", "Q4_0", "F16", "F32", "BF16")


def main() -> int:
    if len(sys.argv) != 4:
        print(__doc__)
        return 2
    model, made, gguf = map(Path, sys.argv[1:])
    gguf.mkdir(parents=True, exist_ok=True)
    print(f"ours: {prepared(model, made, 'q8_0')}", flush=True)
    for form in FORMS:
        print(f"llama.cpp's: {gguf_file(model, gguf, form)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
