"""Memory of one long conversation: weights, keys and values of up to 8,000 tokens, beside llama.cpp's.

    python -m bench.long_contexts FOLDER [--gguf Q8_0.gguf]     # in bench/.venv; FOLDER: Hugging Face's, or that of a quantise stage

Every contender is a process of its own. A prompt grows from 1,000 to 8,000 tokens, each time behind what is known already, so a time is
that of the new tokens. Numbers are MB beyond the process before it had a model: resident now, and at the peak, which a score matrix of
tokens x tokens would show. llama.cpp reserves its cache whole. Writes results/long-contexts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demeanor.core import hardware

if __name__ == "__main__":
    hardware.prepare(None)

from bench.parts import machine
from bench.smollm2_worker import FIRST, LAST, memory
from demeanor.core.files import origin, write_json
from demeanor.core.table import Table

LENGTHS = (1000, 2000, 4000, 8000)
CONTEXT = 8192
OURS = ("bf16", "fp32")
"""Formats of our keys and values; fp16 takes what bf16 takes."""


def reader(who: str, path: Path) -> Callable[[list[int]], None]:
    """What reads a prompt whose beginning it may have read before."""
    if who == "llama.cpp":
        from bench.smollm2_worker import Native

        native, known = Native(path), 0
        native._ready(1, CONTEXT)

        def read(prompt: list[int]) -> None:
            nonlocal known
            native._feed([(prompt[i], i, 0, i + 1 == len(prompt)) for i in range(known, len(prompt))])
            known = len(prompt)

        return read
    from demeanor.core.types import Decoding
    from demeanor.engine.local import LocalEngine, Request
    from demeanor.model import checkpoints
    from demeanor.text import tokenizer

    engine = LocalEngine(
        checkpoints.serving(path),
        tokenizer.load(path),
        num_slots=1,
        max_context=CONTEXT,
        cache_format=who,  # type: ignore[arg-type]
    )
    once = Decoding(temperature=0, max_tokens=1)

    def answer(prompt: list[int]) -> None:
        engine.generate([Request(tuple(prompt), once)])

    return answer


def measured(who: str, path: Path, longest: int) -> list[dict[str, Any]]:
    """A row for the loaded weights and one for each length, in this process, which has had no model."""
    import torch  # noqa: F401  (part of the empty process, of llama.cpp's too: its worker imports it)

    base = memory()["VmRSS"]
    read = reader(who, path)
    draw, prompt, rows = random.Random(0), list[int](), []

    def row(seconds: float) -> dict[str, Any]:
        now = memory()
        resident, peak = round(now["VmRSS"] - base), round(now["VmHWM"] - base)
        return {"tokens": len(prompt), "seconds": round(seconds, 2), "resident_mb": resident, "peak_mb": peak}

    rows.append(row(0))
    for length in (n for n in LENGTHS if n <= longest):
        prompt += [draw.randrange(FIRST, LAST) for _ in range(length - len(prompt))]
        began = time.perf_counter()
        read(prompt)
        rows.append(row(time.perf_counter() - began))
    return rows


def slope(rows: list[dict[str, Any]], a: int, b: int) -> float:
    """MB for 1,000 tokens between two lengths."""
    found = {x["tokens"]: x["resident_mb"] for x in rows}
    return float(1000 * (found[b] - found[a]) / (b - a))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--gguf", type=Path, help="the same weights for llama.cpp (the package llama-cpp-python)"
    )
    parser.add_argument(
        "--longest", type=int, default=LENGTHS[-1], choices=LENGTHS[1:], help="leave out longer prompts"
    )
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("results/long-contexts.json"))
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measured(given.here, given.folder, given.longest)))
        return 0
    from bench.smollm2_worker import cache_of

    usual = cache_of(given.folder)
    found: dict[str, list[dict[str, Any]]] = {}
    wanted = [(who, given.folder) for who in OURS] + ([("llama.cpp", given.gguf)] if given.gguf else [])
    for who, path in wanted:
        command = [
            sys.executable,
            "-m",
            "bench.long_contexts",
            str(path),
            "--here",
            who,
            "--longest",
            str(given.longest),
        ]
        with hardware.unbound():
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"bench: {who} is left out: exit code {done.returncode}", file=sys.stderr)
            continue
        found[who] = json.loads(done.stdout.splitlines()[-1])
        write_json(
            given.out,
            {"rows": found, "default": usual, "load": os.getloadavg(), "machine": machine(), **origin()},
        )
    lengths = [n for n in LENGTHS if n <= given.longest]
    head = ("", "weights", *(f"{n:,}" for n in lengths), "peak", "MB per 1,000 tokens: first", "last")
    lines = [
        (
            who
            if who == "llama.cpp"
            else f"demeanor, keys and values in {who}{' (the default)' if who == usual else ''}",
            *(f"{x['resident_mb']:,}" for x in rows),
            f"{rows[-1]['peak_mb']:,}",
            f"{slope(rows, *lengths[:2]):.1f}",
            f"{slope(rows, *lengths[-2:]):.1f}",
        )
        for who, rows in found.items()
    ]
    print(Table(head, tuple(lines)))
    for who, rows in found.items():
        times = ", ".join(f"to {x['tokens']:,}: {x['seconds']:.1f} s" for x in rows[1:])
        print(f"{who}: reading {times}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
