"""Decoding beside other work: tokens a second before, while and after a second program keeps a core busy.

    python -m bench.contention FOLDER [--at-once 1] [--busy 2]     # a Hugging Face folder, or that of a quantise stage; a quiet machine

One process decodes with all threads; after BEFORE_S seconds a child process spins for --busy seconds on every core but one. Prints the
speed in windows of a quarter second, and how long after the disturbance it took to be back at 90% of the speed before.
Writes results/contention.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from demeanor.core import hardware

THREADS = hardware.prepare(None)

import torch  # noqa: E402

from demeanor.core.files import origin, write_json  # noqa: E402
from demeanor.core.table import Table  # noqa: E402
from demeanor.model import checkpoints, native  # noqa: E402
from demeanor.model.llama import Llama  # noqa: E402
from demeanor.model.pages import PagedCache  # noqa: E402

BEFORE_S, AFTER_S, WINDOW_S = 3.0, 6.0, 0.25
SPIN = "import time, sys\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


def speeds(decoder: native.Native, at_once: int, busy: float) -> list[tuple[float, float]]:
    """The end of each window in seconds, 0 when the disturbance begins, and its tokens a second."""
    rows = ([5] * at_once, list(range(at_once)), [64] * at_once, list(range(at_once)))
    found: list[tuple[float, float]] = []
    children: list[subprocess.Popen[bytes]] = []
    start = time.monotonic() + BEFORE_S
    window, count = time.monotonic(), 0
    try:
        while (now := time.monotonic()) < start + busy + AFTER_S:
            if now >= start and not children:
                children = [
                    subprocess.Popen([sys.executable, "-c", SPIN, str(busy)])
                    for _ in range(max(1, THREADS - 1))
                ]
            decoder.forward(*rows, threads=THREADS)
            count += at_once
            if (now := time.monotonic()) - window >= WINDOW_S:
                found.append((now - start, count / (now - window)))
                window, count = now, 0
    finally:
        for child in children:
            child.kill()
            child.wait()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at-once", type=int, default=1, help="sequences that decode")
    parser.add_argument("--busy", type=float, default=2, help="seconds of other work")
    parser.add_argument("--out", type=Path, default=Path("results/contention.json"))
    options = parser.parse_args()
    model = checkpoints.serving(options.folder)
    if not isinstance(model, Llama) or native.build() is None or not native.fits(model):
        parser.error(f"{options.folder}: compiled code does not run it here")
    cache = PagedCache(model.config, options.at_once, 128)
    cache.data.normal_(0, 0.3)
    with torch.inference_mode():
        found = speeds(native.Native(model, cache), options.at_once, options.busy)
    usual = median(speed for at, speed in found if at < 0)
    meanwhile = median(speed for at, speed in found if 0.5 < at < options.busy)
    back = next((at - options.busy for at, s in found if at > options.busy and s >= 0.9 * usual), None)
    rows = [("before", f"{usual:,.0f}"), ("meanwhile", f"{meanwhile:,.0f}")]
    rows += [(f"{at - options.busy:.2f} s after", f"{s:,.0f}") for at, s in found if at > options.busy]
    print(Table(("", "tokens a second"), tuple(rows)))
    said = "not" if back is None else f"{max(0.0, back):.2f} s after the other work ended"
    print(f"back at 90% of the speed before: {said}")
    about = {"at_once": options.at_once, "threads": THREADS, "load": os.getloadavg()}
    write_json(options.out, {"speeds": found, "back_s": back, **about, **origin()})


if __name__ == "__main__":
    main()
