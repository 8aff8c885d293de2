"""`make bench`: every benchmark, each a process of its own with a time limit; one that fails or hangs stops no other.

    python -m bench.all [--device cuda] [--quick] [--only NAME...] [--model FOLDER]

--quick takes less than 10 minutes whatever the load: the cheap parts first, each cut short; what did not fit is said. Its numbers mean little. Every part writes its own JSON
under results/; results/bench.json says what became of each, with machine, commit and load. Exit code 1: a part did not end well.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.parts import Part, run_parts, show
from bench.smollm2_speed import found_model, prepared
from demeanor.core.files import write_json

QUICK_S = 500.0
OUT = Path("results/bench.json")


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def parts(device: str, *, quick: bool, model: Path | None, rounded: Path | None) -> list[Part]:
    """The parts for a device; those of a real model only where it is there (`rounded`: it in q8_0)."""
    if device == "cuda":
        return [
            Part("training", python("bench", "--device", "cuda"), 3600),
            Part("cuda", python("bench.cuda"), 3600),
        ]
    few = ["--rounds", "1"] if quick else []

    def part(
        name: str, module: str, full_s: float, quick_s: float, always: Sequence[str], shorter: Sequence[str]
    ) -> Part:
        return Part(name, python(module, *always, *(shorter if quick else [])), quick_s if quick else full_s)

    own = [
        part("index", "bench.index_speed", 300, 90, [], []),
        part("serving", "bench.serving", 1800, 60, [], ["--part", "1", "--count", "50"]),
    ]
    peers = [
        part("decoding", "bench.decoding", 1200, 100, few, ["--threads", "2"]),
        part("online", "bench.online", 1800, 100, few, ["--only", "grpo"]),
        part("training", "bench", 3600, 150, few, ["--only", "reward, K=4", "--no-defaults"]),
    ]
    if model is None or rounded is None:
        return own + peers
    at, small = ["--model", str(model)], str(rounded)
    narrow = ["--formats", "int8", "--scenarios", "decode 8", "--answers", "0", "--tries", "1"]
    narrow += [
        "--without",
        "demeanor int8",
        "llama.cpp Q",
    ]  # ours in q8_0, and llama.cpp compiled for this CPU
    return [
        *own,
        part("cache formats", "bench.cache_formats", 300, 60, [small], ["--seconds", "5", "--texts", "1"]),
        part("long contexts", "bench.long_contexts", 600, 90, [small], ["--longest", "2000"]),
        part("contention", "bench.contention", 120, 60, [small], ["--busy", "1"]),
        part("SmolLM2 alone", "bench.smollm2_alone", 900, 100, [small], ["--processes", "1", "--calls", "1"]),
        *peers,
        part("SmolLM2 speed", "bench.smollm2_speed", 5400, 120, [*at, *few], narrow),
        part(
            "training, real weights",
            "bench",
            3600,
            120,
            [*at, *few],
            ["--only", "sft, rasbt, adapters", "--no-defaults"],
        ),
        part(
            "SmolLM2 serving",
            "bench.smollm2_serving",
            5400,
            90,
            [*at, *few],
            ["--callers", "1", "--only", "demeanor, weights", "--seconds", "10"],
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--quick", action="store_true", help="less than 10 minutes: that every part runs")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="these parts")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct, a folder; as bench.smollm2_speed")
    options = parser.parse_args()
    model = found_model(options.model)
    if model is None:
        print(
            "bench: SmolLM2-135M-Instruct is not here; its parts are left out (docs/smollm2-grpo.md makes the folder)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        rounded = None
        if model is not None and options.device == "cpu":
            rounded = prepared(model, Path(scratch), "q8_0")
        chosen = parts(options.device, quick=options.quick, model=model, rounded=rounded)
        unknown = set(options.only or ()) - {part.name for part in chosen}
        if unknown:
            parser.error(
                f"--only {', '.join(sorted(unknown))}: no such part; known: {', '.join(p.name for p in chosen)}"
            )
        chosen = [part for part in chosen if options.only is None or part.name in options.only]
        OUT.parent.mkdir(exist_ok=True)
        about = {"quick": options.quick, "device": options.device, "load_at_start": os.getloadavg()}
        try:
            found = run_parts(
                chosen,
                lambda rows: write_json(OUT, {**about, **rows}, indent=1),
                total_s=QUICK_S if options.quick else None,
            )
        except KeyboardInterrupt:
            print(f"interrupted; {OUT} has what was run", file=sys.stderr)
            return 130
    code = show(found)
    print(f"written: {OUT}")
    return code


if __name__ == "__main__":
    sys.exit(main())
