"""`python -m bench.decoding`: tokens per second against transformers and ONNX Runtime GenAI.

The peers are `generate` of transformers, its continuous batching, and ONNX Runtime GenAI. One random Llama
(8.7 M weights, 6 x 320, vocabulary 4096), prompts of 32 tokens, 128 new tokens, greedy, no end token. Every
contender is a process of its own that keeps its model; they take turns, round after round. Fair to the peers:
equal lengths (nothing is padded), warm managers, cache sizes given, each peer's faster number format as a row
of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROMPT, NEW, VOCAB, CONTEXT = 32, 128, 4096, 512
SIZES = (1, 16, 32)
OURS = ("demeanor fp32", "demeanor bf16", "demeanor int8")
PEERS = (
    "generate fp32",
    "generate bf16",
    "continuous batching fp32",
    "continuous batching bf16",
    "onnxruntime-genai fp32",
)
Run = Callable[[list[list[int]]], list[list[int]]]


def prompts(count: int, round_: int) -> list[list[int]]:
    """Other prompts in every round, so that no prefix is known."""
    import torch

    return torch.randint(
        3, VOCAB, (count, PROMPT), generator=torch.Generator().manual_seed(1000 * round_ + count)
    ).tolist()


def make(folder: Path) -> None:
    """One checkpoint for everybody, and the same rounded to bf16 and int8."""
    from demeanor.model import checkpoints, quantize
    from demeanor.stack import schema
    from demeanor.text import tokenizer

    model = checkpoints.create(
        schema.ModelShape(layers=6, width=320, heads=5, mlp_width=864, context=CONTEXT, init="normal"),
        VOCAB,
        0,
    )
    checkpoints.save(model, folder / "fp32")
    rng = random.Random(0)
    words = [
        "".join(rng.choice("bcdfglmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(1, 4)))
        for _ in range(6000)
    ]
    made = tokenizer.train(
        [" ".join(rng.choices(words, k=40)) for _ in range(2000)], schema.TokenizerSpec(vocab_size=VOCAB)
    )
    assert made.vocab_size == VOCAB, made.vocab_size  # every token of the model is text
    made.save(folder / "fp32")
    for kind in ("bf16", "int8"):
        quantize.write(folder / "fp32", folder / kind, kind)  # type: ignore[arg-type]


def ours(folder: Path) -> Run:
    from demeanor.core.types import Decoding
    from demeanor.engine.local import LocalEngine, Request
    from demeanor.model import checkpoints

    class Numbers:
        vocab_size = VOCAB

        def decode(self, tokens: tuple[int, ...]) -> str:
            return "".join(f" {t}" for t in tokens)

    engine = LocalEngine(checkpoints.load(folder), Numbers(), num_slots=max(SIZES))  # type: ignore[arg-type]
    decoding = Decoding(temperature=0, max_tokens=NEW)
    return lambda asked: [
        [p.token for p in pieces] for pieces in engine.generate([Request(tuple(x), decoding) for x in asked])
    ]


def generate(folder: Path, dtype: str) -> Run:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None

    def run(asked: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(asked)
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        return [row[PROMPT:].tolist() for row in found]

    return run


def batching(folder: Path, dtype: str) -> Run:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    cache = ContinuousBatchingConfig(
        page_size=32, num_blocks=max(SIZES) * (PROMPT + NEW) // 32 + 64, max_batch_tokens=2048
    )

    def run(asked: list[list[int]]) -> list[list[int]]:
        found = model.generate_batch(
            inputs=asked, generation_config=config, continuous_batching_config=cache, persistent_manager=True
        )
        return [found[key].generated_tokens for key in sorted(found, key=lambda k: int(k.rsplit("_", 1)[-1]))]

    return run


def onnx(folder: Path) -> Run:
    import numpy as np
    import onnxruntime_genai as og

    out = folder.parent / "onnx"
    if not out.is_dir():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "onnxruntime_genai.models.builder",
                "-i",
                str(folder),
                "-o",
                str(out),
                "-p",
                "fp32",
                "-e",
                "cpu",
                "-c",
                str(folder.parent / "onnx-cache"),
            ],
            check=True,
            capture_output=True,
        )
    settings = json.loads((out / "genai_config.json").read_text())
    settings["model"]["decoder"]["session_options"]["intra_op_num_threads"] = int(
        os.environ["OMP_NUM_THREADS"]
    )
    (out / "genai_config.json").write_text(json.dumps(settings))
    model = og.Model(str(out))

    def run(asked: list[list[int]]) -> list[list[int]]:
        params = og.GeneratorParams(model)
        params.set_search_options(
            max_length=PROMPT + NEW, min_length=PROMPT + NEW, do_sample=False, batch_size=len(asked)
        )
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(asked, dtype=np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [list(map(int, generator.get_sequence(i)))[PROMPT:] for i in range(len(asked))]

    return run


def worker(who: str, folder: Path) -> None:
    """Answer lines `COUNT ROUND` with the seconds one run took and a check sum of its tokens."""
    from demeanor.core import hardware

    hardware.prepare(int(os.environ["OMP_NUM_THREADS"]))
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    name, _, dtype = who.rpartition(" ")
    wide = {"fp32": "float32", "bf16": "bfloat16"}.get(dtype, "")
    run = {
        "demeanor": lambda: ours(folder / dtype),
        "generate": lambda: generate(folder / "fp32", wide),
        "continuous batching": lambda: batching(folder / "fp32", wide),
        "onnxruntime-genai": lambda: onnx(folder / "fp32"),
    }[name]()
    print("@ready", flush=True)
    for line in sys.stdin:
        count, round_ = map(int, line.split())
        asked = prompts(count, round_)
        started = time.perf_counter()
        found = run(asked)
        seconds = time.perf_counter() - started
        print(
            "@" + json.dumps({"seconds": seconds, "tokens": sum(map(len, found)), "said": found}), flush=True
        )


class Contender:
    """A worker process."""

    def __init__(self, who: str, folder: Path, threads: int) -> None:
        self._log = open(f"/tmp/demeanor-decoding-{who.replace(' ', '-')}.log", "w")  # noqa: SIM115
        self.who = who
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.decoding", "--worker", who, str(folder)],
            text=True,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "PYTHONPATH": str(ROOT),
                "HF_HUB_OFFLINE": "1",
            },
        )
        self._read()

    def go(self, count: int, round_: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count} {round_}\n")
        self._process.stdin.flush()
        return dict(json.loads(self._read()))

    def _read(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                return line[1:]
        raise SystemExit(f"bench: {self.who} stopped; its messages: {self._log.name}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def rows_of(
    found: dict[tuple[str, int], list[float]], said: dict[tuple[str, int], Any], threads: int
) -> list[dict[str, Any]]:
    """A row for each contender and number of requests: speeds, and the share of tokens that equal those of transformers in fp32."""
    rows = []
    for (who, size), speeds in found.items():
        truth = said.get(("generate fp32", size))
        same = None
        if truth is not None:
            equal = sum(a == b for x, y in zip(said[who, size], truth) for a, b in zip(x, y))
            same = equal / (size * NEW)
        row = {"who": who, "threads": threads, "requests": size, "tokens_per_s": speeds}
        rows.append({**row, "median": statistics.median(speeds), "same_tokens": same})
    return rows


def main() -> int:
    """Take turns, print the table, write results/decoding.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=2, metavar=("WHO", "FOLDER"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--only", nargs="+", choices=(*OURS, *PEERS), help="these contenders")
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], Path(options.worker[1]))
        return 0
    from rich.console import Console
    from rich.table import Table

    from bench.parts import save
    from demeanor.core.files import origin

    rows: list[dict[str, Any]] = []
    out = ROOT / "results" / "decoding.json"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make(folder)
        for threads in options.threads:
            found: dict[tuple[str, int], list[float]] = {}
            said: dict[tuple[str, int], Any] = {}
            for who in options.only or (*OURS, *PEERS):  # one at a time in memory: the cores are few
                contender = Contender(who, folder, threads)
                for size in SIZES:
                    contender.go(size, 99)  # warm
                    for round_ in range(options.rounds):
                        answer = contender.go(size, round_)
                        found.setdefault((who, size), []).append(answer["tokens"] / answer["seconds"])
                        said[who, size] = answer["said"]
                contender.close()
                so_far = rows + rows_of(found, said, threads)
                save(out, {"rows": so_far, "load": os.getloadavg(), **origin()})
                print(f"{who}, {threads} threads: done", file=sys.stderr, flush=True)
            rows += rows_of(found, said, threads)
    table = Table(
        title=f"tokens per second, median of {options.rounds} rounds (lowest-highest); in brackets: share of "
        "tokens equal to transformers fp32",
        box=None,
        title_justify="left",
    )
    for head in ("", "threads", *(f"{size} at once" for size in SIZES)):
        table.add_column(head, justify="left" if not head else "right")
    for threads in options.threads:
        for who in options.only or (*OURS, *PEERS):
            cells = [r for r in rows if r["who"] == who and r["threads"] == threads]
            table.add_row(
                who,
                str(threads),
                *(
                    f"{r['median']:,.0f} ({min(r['tokens_per_s']):,.0f}-{max(r['tokens_per_s']):,.0f})"
                    + ("" if r["same_tokens"] is None else f" [{r['same_tokens']:.2f}]")
                    for r in cells
                ),
            )
    Console(width=150).print(table)
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
