"""One engine alone on files of a billion weights and more, in turns with llama.cpp: loading, reading, decoding, peak memory.

    python -m bench.large_models MODEL.gguf... --llama llama-batched-bench [--rounds 3] [--read 128] [--new 16] [--at-once 1,8]

Both get the same file, threads and numbers of tokens; each measurement is a process of its own. Speeds are medians over the rounds with
the lowest and the highest; memory is the most that was resident. Writes results/large-models.json and prints the table of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from demeanor.core import hardware

hardware.prepare(None)

from demeanor.core.files import origin, write_json  # noqa: E402
from demeanor.core.types import Decoding  # noqa: E402
from demeanor.engine.local import LocalEngine, Request  # noqa: E402
from demeanor.model import checkpoints  # noqa: E402
from demeanor.text import tokenizer  # noqa: E402
from demeanor.training import gguf_folder  # noqa: E402

OURS, THEIRS = "demeanor", "llama.cpp"


def measured(path: Path, read: int, new: int, at_once: list[int]) -> dict[str, float]:
    """Measure our engine on a file in this process: seconds to load, tokens a second of prompts and of answers."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        started = time.perf_counter()
        gguf_folder.write(path, folder)
        model, spoken = checkpoints.serving(folder), tokenizer.load(folder)
        engine = LocalEngine(model, spoken, max_context=4 * (read + new), cache_format="bf16")
        found = {"load_s": time.perf_counter() - started}

        def seconds(prompts: list[tuple[int, ...]], answer: int) -> float:
            decoding, began = Decoding(temperature=0, max_tokens=answer), time.perf_counter()
            engine.generate([Request(prompt, decoding, frozenset()) for prompt in prompts])
            return time.perf_counter() - began

        def drawn(count: int) -> list[tuple[int, ...]]:
            return [tuple(draw.randrange(500, 40_000) for _ in range(read)) for _ in range(count)]

        seconds(drawn(1), 2)
        for count in at_once:
            prompts = drawn(count)
            found[f"read {count}"] = count * read / seconds(prompts, 1)
            # The prompts are in the cache now, up to the last page: its tokens are read again within this time.
            found[f"decode {count}"] = count * new / seconds(prompts, new)
        engine.close()
    return found


def theirs(output: str) -> dict[str, float]:
    """The speeds in the lines of llama-batched-bench."""
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    speeds = {f"read {row['pl']}": row["speed_pp"] for row in rows}
    return speeds | {f"decode {row['pl']}": row["speed_tg"] for row in rows}


def process(command: list[str]) -> tuple[str, int]:
    """Run a program; its output and the most bytes that were resident."""
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        if status:
            raise SystemExit(
                f"{command[0]} ended with status {os.waitstatus_to_exitcode(status)}: {' '.join(command)}"
            )
        out.seek(0)
        return out.read(), usage.ru_maxrss << 10


def one_round(path: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Both programs on one file."""
    sizes = [str(options.read), str(options.new), options.at_once]
    ours, ours_bytes = process(
        [sys.executable, "-m", "bench.large_models", str(path), "--here", *_flags(sizes)]
    )
    found = {OURS: json.loads(ours.splitlines()[-1]) | {"bytes": ours_bytes}}
    if options.llama:
        most = max(map(int, options.at_once.split(",")))
        arguments = [
            "-m",
            str(path),
            "-t",
            "2",
            "-tb",
            "2",
            "-c",
            str(most * (options.read + options.new) + 64),
        ]
        arguments += ["-npp", sizes[0], "-ntg", sizes[1], "-npl", sizes[2], "--output-format", "jsonl"]
        said, their_bytes = process([options.llama, *arguments])
        found[THEIRS] = theirs(said) | {"bytes": their_bytes}
    return found


def _flags(sizes: list[str]) -> list[str]:
    return ["--read", sizes[0], "--new", sizes[1], "--at-once", sizes[2]]


def table(rows: dict[str, dict[str, dict[str, list[float]]]], options: argparse.Namespace) -> str:
    """Markdown: medians, lowest and highest, and the ratio of the medians."""
    lines = ["| file | measure | demeanor | llama.cpp | ratio |", "|---|---|--:|--:|--:|"]
    for name, found in rows.items():
        for key in found[OURS]:
            ours, other = found[OURS][key], found.get(THEIRS, {}).get(key, [])
            ratio = f"{median(ours) / median(other):.2f}" if other else ""
            lines.append(
                f"| {name} | {_label(key, options)} | {_cell(key, ours)} | {_cell(key, other)} | {ratio} |"
            )
    return "\n".join(lines)


def _label(key: str, options: argparse.Namespace) -> str:
    kind, _, count = key.partition(" ")
    names = {"load_s": "load, s", "bytes": "peak memory, GB"}
    told = {"read": f"read {options.read} tokens", "decode": f"decode {options.new} tokens"}
    return names.get(key) or f"{told[kind]}, {count} at once, tokens/s"


def _cell(key: str, values: list[float]) -> str:
    if not values:
        return ""
    low, middle, high = (
        x / (1e9 if key == "bytes" else 1) for x in (min(values), median(values), max(values))
    )
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]" if key != "bytes" else f"{high:.2f}"


def main() -> None:
    """Measure in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--llama", default="", help="the program llama-batched-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read", type=int, default=128)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--at-once", default="1,8")
    parser.add_argument("--here", action="store_true", help="measure our engine in this process")
    options = parser.parse_args()
    if options.here:
        print(
            json.dumps(
                measured(
                    options.paths[0], options.read, options.new, [int(x) for x in options.at_once.split(",")]
                )
            )
        )
        return
    rows: dict[str, dict[str, dict[str, list[float]]]] = {}
    for _ in range(options.rounds):
        for path in options.paths:
            for program, found in one_round(path, options).items():
                kept = rows.setdefault(path.name, {}).setdefault(program, {})
                for key, value in found.items():
                    kept.setdefault(key, []).append(value)
            about = {
                "rows": rows,
                "origin": origin(),
                "options": {k: str(v) for k, v in vars(options).items()},
            }
            write_json(Path("results") / "large-models.json", about)  # after each, because a round takes long
    print(table(rows, options))


if __name__ == "__main__":
    main()
