"""One engine alone on a quiet machine: prompts, decoding, resident memory, and greedy answers against transformers.

    python -m bench.smollm2_alone FOLDER... [--answers 40] [--processes 3]

Every folder is measured in processes of its own, the folders in turn. A row is the median over the processes (of each, the median of five
calls) with the lowest and the highest. Writes results/smollm2-alone.json. Peers are in bench.smollm2_speed, with intervals.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from demeanor.core import hardware

hardware.prepare(None)

import torch  # noqa: E402

from bench.peaks import peak, shares  # noqa: E402
from bench.smollm2_worker import cache_of  # noqa: E402
from demeanor.core.files import origin, write_json  # noqa: E402
from demeanor.core.types import Decoding  # noqa: E402
from demeanor.engine.local import LocalEngine, Request  # noqa: E402
from demeanor.model import checkpoints  # noqa: E402
from demeanor.text import tokenizer  # noqa: E402

PROMPTS, AT_ONCE, CALLS, NEW = (128, 1024, 4096), (1, 8, 32), 5, 64
QUESTIONS = Path(__file__).resolve().parents[2] / "shared" / "data" / "rasbt" / "instruction-data.json"


def resident_mb() -> float:
    """Resident memory of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def format_of(engine: LocalEngine) -> str:
    """The format of the engine's products, as bench.peaks names it."""
    held = getattr(engine._forward, "_native", None)
    if held is None or held.compute == "bf16":
        return "fp32" if held is None else "bf16"
    return "int8" if any(format.startswith("q") for format in held.formats) else "fp32"


def rates(engine: LocalEngine, folder: Path, calls: int) -> dict[str, float]:
    """Tokens a second: prompts read alone, with the share of the best product measured just before, and answers of 64 tokens to prompts
    of 32, which are counted in the time."""
    draw = random.Random(0)

    def request(length: int, new: int) -> Request:
        tokens = tuple(draw.randrange(500, 40_000) for _ in range(length))
        return Request(tokens, Decoding(temperature=0, max_tokens=new), frozenset())

    def rate(tokens: int, length: int, new: int, count: int) -> float:
        found = []
        for _ in range(calls):
            requests = [request(length, new) for _ in range(count)]
            start = time.perf_counter()
            engine.generate(requests)
            found.append(tokens / (time.perf_counter() - start))
        return round(median(found), 1)

    engine.generate([request(32, 8)])
    read: dict[str, Any] = {}
    for n in PROMPTS:
        best = peak(folder, format_of(engine), engine)["peak"]
        speed = read[f"read {n}"] = rate(n, n, 1, 1)
        percent = {name: round(100 * x, 1) for name, x in shares(folder, n, speed, best or 1.0).items()}
        read |= {
            f"read {n}, % of the peak": percent["of_peak"],
            f"read {n}, % by products only": percent["of_peak_products_only"],
            f"read {n}, peak, GFLOP/s": best,
        }
    return read | {f"decode {k}": rate(NEW * k, 32, NEW, k) for k in AT_ONCE}


def differences(engine: LocalEngine, folder: Path, count: int) -> dict[str, Any]:
    """Greedy answers to real instructions: tokens that are not the best of transformers' fp32 logits, with the gap of the two."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = json.loads(QUESTIONS.read_text("utf-8"))[:count]
    theirs = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    texts = (
        f"<|im_start|>user\n{r['instruction']} {r['input']}<|im_end|>\n<|im_start|>assistant\n" for r in rows
    )
    prompts = [theirs.encode(text) for text in texts]
    end = frozenset({theirs.convert_tokens_to_ids("<|im_end|>")})
    decoding = Decoding(temperature=0, max_tokens=40)
    pieces = engine.generate([Request(tuple(prompt), decoding, end) for prompt in prompts])
    total, gaps = 0, []
    for prompt, answer in zip(prompts, pieces):
        said = [piece.token for piece in answer if piece.token >= 0]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        best = logits.argmax(-1).tolist()
        first = next((i for i, (a, b) in enumerate(zip(said, best)) if a != b), None)
        total += len(said)
        if first is not None:
            gaps.append(float(logits[first, best[first]] - logits[first, said[first]]))
    return {
        "answers": len(prompts),
        "tokens": total,
        "answers_that_differ": len(gaps),
        "gaps_of_logits": gaps,
    }


def measured(folder: Path, answers: int, calls: int) -> dict[str, Any]:
    """Measure one folder in this process, which has loaded no weights before."""
    before = resident_mb()
    engine = LocalEngine(checkpoints.serving(folder), tokenizer.load(folder), cache_format=cache_of(folder))
    row: dict[str, Any] = {"resident_mb": round(resident_mb() - before)} | rates(engine, folder, calls)
    if answers and "quantization" not in (folder / "config.json").read_text():
        row |= differences(engine, folder, answers)
    engine.close()
    return row


def apart(folder: Path, answers: int, calls: int) -> dict[str, Any]:
    """Measure one folder in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "bench.smollm2_alone",
        str(folder),
        "--here",
        "--answers",
        str(answers),
        "--calls",
        str(calls),
    ]
    with hardware.unbound():
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{folder}: the process that measures it ended with exit code {done.returncode}")
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def spread(found: list[dict[str, Any]]) -> dict[str, str]:
    """Each speed and size as the median of the processes, with the lowest and the highest."""
    numbers = [name for name, value in found[0].items() if isinstance(value, int | float)]
    columns = {name: [row[name] for row in found if name in row] for name in numbers}
    return {
        name: f"{median(values):,.0f}"
        + (f" ({min(values):,.0f} to {max(values):,.0f})" if len(values) > 1 else "")
        for name, values in columns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "folders", nargs="+", type=Path, help="Hugging Face folders, or those of a quantise stage"
    )
    parser.add_argument("--answers", type=int, default=0, help="instructions to answer; 0: none")
    parser.add_argument("--processes", type=int, default=3, help="processes that measure each folder")
    parser.add_argument("--calls", type=int, default=CALLS, help="calls of each row in a process")
    parser.add_argument("--here", action="store_true", help="measure one folder in this process, print JSON")
    parser.add_argument("--out", type=Path, default=Path("results/smollm2-alone.json"))
    options = parser.parse_args()
    if options.answers and not QUESTIONS.exists():
        print(f"bench: answers are left out: {QUESTIONS} is not there")
        options.answers = 0
    if options.here:
        print(json.dumps(measured(options.folders[0], options.answers, options.calls)))
        return
    found: dict[str, list[dict[str, Any]]] = {str(folder): [] for folder in options.folders}
    for turn in range(options.processes):
        for folder in options.folders:  # the first process answers too
            found[str(folder)].append(apart(folder, 0 if turn else options.answers, options.calls))
            write_json(options.out, {"folders": found, "load": os.getloadavg(), **origin()})
    for name, rows in found.items():
        print(name, *(f"{what}: {value}" for what, value in spread(rows).items()), sep="\n  ")
        if "gaps_of_logits" in rows[0]:
            print(
                f"  {rows[0]['answers_that_differ']} of {rows[0]['answers']} answers differ; gaps of logits: {rows[0]['gaps_of_logits']}"
            )


if __name__ == "__main__":
    main()
