"""`make bench`: every benchmark, each a process of its own with a share of the time; one that fails or hangs stops no other.

    python -m bench.all [--device cuda] [--quick | --thorough] [--only NAME...] [--model FOLDER] [--gguf FOLDER] [--llama-server PROGRAM]

About 70 minutes on 2 quiet cores, never more than 75: parts of the real model first, in the order of their importance; toy models get what
is left. A part that overruns is stopped, and the rows that it wrote stay. --quick: less than 10 minutes, numbers without meaning; --thorough:
several hours, every contender and line. Every part writes its own JSON under results/; results/bench.json has the scorecard (bench.scorecard),
what became of each part, machine, commit and load. Exit code 1: a part did not end well.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench import scorecard
from bench.__main__ import ROOT
from bench.parts import Part, run_parts, save, show
from bench.smollm2_speed import SCENARIOS, found_model

QUICK_S, USUAL_S, OVER = 500.0, 75 * 60.0, 1.6
"""Bounds of all parts together; a part may take so many times its share."""
OUT = ROOT / "results" / "bench.json"
PEERS = {
    "transformers": "transformers",
    "trl": "TRL",
    "peft": "PEFT",
    "llama_cpp_python": "llama.cpp, compiled here",
    "xllamacpp": "llama.cpp, a wheel",
    "onnxruntime-genai": "ONNX Runtime GenAI",
}
"""Packages of the peers, as bench/requirements.txt and bench/optional.txt name them."""
COMPILED = "llama_cpp_python"
"""It may be a folder that was compiled elsewhere and copied, without a version."""
PREPARE, PREPARE_S = "weights", 600.0


class Places(NamedTuple):
    """Where the real model is: its folder, our folders and GGUF files (made where they lack), and a llama-server or None."""

    model: Path
    made: Path
    gguf: Path
    server: Path | None = None


class Plan(NamedTuple):
    """A part of the plan: its module, arguments and seconds, by depth. None: it is left out at that depth."""

    name: str
    module: str
    usual: list[str] | None
    usual_s: float
    quick: list[str] | None
    quick_s: float
    thorough: list[str]
    thorough_s: float
    real: bool = False
    needs: tuple[str, ...] = ()


def real_parts(at: Places) -> list[Plan]:
    """The parts of the real model, the most important first."""
    rounded = str(at.made / "q8_0")
    model = ["--model", str(at.model)]
    files = [*model, "--gguf", str(at.gguf)]
    both = [*files, "--made", str(at.made)]
    f = {form: str(at.gguf / f"{form}.gguf") for form in ("F32", "F16", "Q8_0", "Q4_0")}
    server = ["--llama-server", str(at.server)] if at.server else []
    asked = ["demeanor, weights", "llama.cpp native" if at.server else "llama.cpp", "transformers serve"]
    cells = ["--callers", "1", "8", "32", "64", "--seconds", "15", "20", "50", "50", "--once", "transformers serve"]  # fmt: skip
    one = ["--rounds", "1"]
    narrow = [*both, "--formats", "int8", "4-bit", "--answers", "0"]
    wide = [*both, "--formats", "bf16", "fp32", "--out", f"results/{scorecard.FILES[scorecard.SPEED_WIDE]}"]
    less = [name for name in SCENARIOS if "after" not in name]
    real = ["--no-defaults", "--without", "rasbt"]
    long = [rounded, "--gguf", f["Q8_0"]]
    prepare = [str(at.model), str(at.made), str(at.gguf)]
    found = [
        Plan(PREPARE, "bench.prepare", prepare, 40, prepare, 60, prepare, 300),
        Plan(scorecard.SPEED, "bench.smollm2_speed", [*narrow, "--rounds", "5"], 330, [*both, *one, "--formats", "int8", "--scenarios", "read 128", "decode 8", "--answers", "0", "--tries", "1"], 100, [*narrow, "--rounds", "10", "--every"], 3600),
        Plan(scorecard.SPEED_WIDE, "bench.smollm2_speed", [*wide, "--rounds", "3", "--scenarios", *less], 680, None, 0, [*wide, "--rounds", "10", "--every"], 5400),
        Plan("SmolLM2 alone", "bench.smollm2_alone", [rounded, str(at.model), "--calls", "3", "--answers", "40"], 180, [rounded, "--processes", "1", "--calls", "1"], 60, [rounded, str(at.model), "--answers", "40"], 900),
        Plan("long contexts", "bench.long_contexts", long, 90, [rounded, "--longest", "2000"], 60, long, 600),
        Plan("training, real weights", "bench", [*model, *real], 930, [*model, *one, *real, "--only", "sft, oasst, adapters"], 90, [*model, "--rounds", "5"], 7200),
        Plan("SmolLM2 serving", "bench.smollm2_serving", [*files, *server, *cells, "--only", *asked], 1200, [*files, *one, "--callers", "1", "--only", asked[0], "--seconds", "10"], 60, [*files, *server, "--seconds", "120"], 10800),
        Plan("perplexity", "bench.smollm2_perplexity", [*both, "--formats", "q8_0", "q4_0", "int8"], 150, [*both, "--formats", "q8_0", "--chunks", "4"], 40, both, 900),
        Plan("GGUF answers", "bench.gguf_answers", [f["Q8_0"], f["F16"], f["Q4_0"], f["F32"], "--prompts", "24"], 150, [f["Q8_0"], "--prompts", "2"], 40, list(f.values()), 900),
        Plan("draws", "bench.draws", [rounded, "--rounds", "2"], 45, [rounded, "--rounds", "1"], 30, [rounded, "--rounds", "5"], 300),
        Plan("contention", "bench.contention", [rounded], 25, [rounded, "--busy", "1"], 30, [rounded], 120),
        Plan("cache formats", "bench.cache_formats", [rounded], 50, [rounded, "--seconds", "5", "--texts", "1"], 40, [rounded], 300),
    ]  # fmt: skip
    return [plan._replace(real=True, needs=() if plan.name == PREPARE else (PREPARE,)) for plan in found]


def toy_parts() -> list[Plan]:
    """The parts of small random models and of code without a model."""
    one = ["--rounds", "1"]
    return [
        Plan("decoding", "bench.decoding", ["--threads", "2", "--rounds", "2"], 190, [*one, "--threads", "2", "--only", "demeanor fp32"], 40, [], 1800),
        Plan("training", "bench", ["--only", "hh-rlhf", "--no-defaults"], 180, [*one, "--only", "reward, K=4", "--no-defaults"], 80, [], 3600),
        Plan("online", "bench.online", ["--only", "grpo", "--tuned", "--rounds", "2"], 160, None, 0, [], 1800),
        Plan("index", "bench.index_speed", [], 40, [], 60, [], 300),
        Plan("serving", "bench.serving", None, 0, ["--part", "1", "--count", "50"], 40, [], 1800),
    ]  # fmt: skip


def parts(device: str, *, depth: str = "usual", at: Places | None = None) -> list[Part]:
    """The parts for a device, in their order; those of the real model only where it is. `depth`: usual, quick or thorough."""
    if device == "cuda":
        return [
            Part("training", python("bench", "--device", "cuda"), 3600),
            Part("cuda", python("bench.cuda"), 3600),
        ]
    found = []
    for plan in [*(real_parts(at) if at else []), *toy_parts()]:
        given: list[str] | None = getattr(plan, depth)
        share_s: float = getattr(plan, f"{depth}_s")
        if given is not None:
            limit_s = share_s * OVER if depth == "usual" else share_s
            if plan.name == PREPARE:
                limit_s = PREPARE_S  # without it no part of the real model runs
            found.append(
                Part(
                    plan.name,
                    python(plan.module, *given),
                    limit_s,
                    needs=plan.needs,
                    share_s=share_s if depth == "usual" else 0.0,
                    spare=not plan.real,
                )
            )
    return found


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def peers(server: Path | None) -> dict[str, str | None]:
    """The version of each peer that is here, None for one that is not."""
    found: dict[str, str | None] = {}
    for package, name in PEERS.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            here = package == COMPILED and importlib.util.find_spec("llama_cpp") is not None
            found[name] = "a version that it does not tell" if here else None
    found["llama.cpp's server, compiled here"] = str(server) if server else None
    return found


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench ARGS=...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    deep = parser.add_mutually_exclusive_group()
    deep.add_argument("--quick", action="store_true", help="less than 10 minutes: that every part runs")
    deep.add_argument(
        "--thorough", action="store_true", help="several hours: every contender, line and format"
    )
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="these parts")
    parser.add_argument("--list", action="store_true", help="print the parts with their minutes, run none")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct, a folder; as bench.smollm2_speed")
    parser.add_argument(
        "--gguf", type=Path, help="folder of GGUF files of it; those that lack are written there"
    )
    parser.add_argument(
        "--llama-server", type=Path, help="a llama-server compiled for this CPU; else that on PATH"
    )
    return parser


def chosen_parts(
    parser: argparse.ArgumentParser, options: argparse.Namespace, at: Places | None
) -> list[Part]:
    """The parts that the command line asks for; the weights are made for all that need them."""
    depth = "quick" if options.quick else "thorough" if options.thorough else "usual"
    found = parts(options.device, depth=depth, at=at)
    unknown = set(options.only or ()) - {part.name for part in found}
    if unknown:
        known = ", ".join(f'"{p.name}"' for p in found)
        parser.error(f"--only {', '.join(sorted(unknown))}: no such part; known: {known}")
    asked = set(options.only or (part.name for part in found))
    asked |= {name for part in found if part.name in asked for name in part.needs}
    return [part for part in found if part.name in asked]


def finished(found: dict[str, dict[str, Any]], about: dict[str, Any], since: float) -> list[scorecard.Line]:
    """The scorecard of what was written since the start, kept in results/bench.json with the parts' outcomes."""
    outcomes = {name: str(row["outcome"]) for name, row in found.items()}
    lines = scorecard.scorecard(scorecard.results(OUT.parent, since=since), outcomes)
    save(OUT, {**about, "scorecard": scorecard.as_json(lines)})
    return lines


def main() -> int:
    for kind in (signal.SIGTERM, signal.SIGINT):  # the parts must be ended, also if the starter ignores these
        signal.signal(kind, signal.default_int_handler)
    parser = arguments()
    options = parser.parse_args()
    model = found_model(options.model)
    if options.model is not None and model is None:
        parser.error(f"--model {options.model}: no model.safetensors there")
    server = options.llama_server or (Path(x) if (x := shutil.which("llama-server")) else None)
    if server is not None and not os.access(server, os.X_OK):
        parser.error(f"--llama-server {server}: not a program")
    if model is None:
        print(
            "bench: SmolLM2-135M-Instruct is not here; its parts are left out (docs/smollm2-grpo.md makes the folder)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        at = (
            Places(model.resolve(), made, (options.gguf or made).resolve(), server and server.resolve())
            if model
            else None
        )
        chosen = chosen_parts(parser, options, at)
        os.chdir(ROOT)  # every part writes to its results/
        if options.list:
            for part in chosen:
                print(
                    f"{part.name:<26} {(part.share_s or part.limit_s) / 60:5.1f} min  {' '.join(part.command[2:])}"
                )
            print(f"{'together':<26} {sum(part.share_s or part.limit_s for part in chosen) / 60:5.1f} min")
            return 0
        return run(chosen, options, peers(server))


def run(chosen: list[Part], options: argparse.Namespace, here: dict[str, str | None]) -> int:
    """Run the parts, print what became of them and the scorecard; 130 if interrupted, 1 if a part did not end well."""
    for name, version in here.items():
        print(f"peer {name}: {version or 'absent; it is left out'}")
    since, load = time.time(), os.getloadavg()
    about: dict[str, Any] = {"quick": options.quick, "thorough": options.thorough, "device": options.device}
    about |= {"load_at_start": load, "peers": here}
    written: dict[str, Any] = {}

    def write(rows: dict[str, Any]) -> None:
        written.update(rows)
        save(OUT, {**about, **rows})

    total_s = QUICK_S if options.quick else None if options.thorough else USUAL_S
    interrupted = False
    try:
        run_parts(chosen, write, total_s=None if options.device == "cuda" else total_s)
    except KeyboardInterrupt:
        interrupted = True
    code = show(written["parts"])
    minutes = (time.time() - since) / 60
    about |= {**written, "minutes": round(minutes, 1)}
    if options.device == "cpu":
        scorecard.show(finished(written["parts"], about, since))
    print(f"{minutes:.0f} minutes. Written: {OUT}")
    if interrupted:
        print(f"interrupted; {OUT} has what was run", file=sys.stderr)
    return 130 if interrupted else code


if __name__ == "__main__":
    sys.exit(main())
