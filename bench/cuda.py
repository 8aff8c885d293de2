"""`python -m bench.cuda`: what only a GPU shows: decoding against transformers and vLLM, QLoRA, and FSDP2 over several GPUs.

Part of `make bench DEVICE=cuda`. One random Llama of 0.5B weights (`bench.work.model_config`). Decoding: prompts of
128 tokens, 128 new, greedy, 1 to 128 at once, bf16; vLLM where it is installed. QLoRA: an SFT step with an NF4 and with
an ordinary base, and TRL's with bitsandbytes; seconds and peak memory. FSDP2: the same step under torchrun with 1 process
and with one a GPU. Every contender is a process of its own. `--device cpu` runs the parts that can be, with a tiny model: a dry run of
this file, no measurement.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.__main__ import ROOT, Contender, interval
from demeanor.core.files import origin

PARTS = ("decoding", "qlora", "fsdp")
SIZES, PROMPT, NEW = (1, 16, 128), 128, 128
VOCABULARY, EOS, STEPS = 32000, 1, 6
DECODERS = ("demeanor", "transformers", "vllm")
TRAINERS = ("demeanor lora", "demeanor qlora", "trl lora", "trl qlora")


def make(folder: Path, device: str) -> None:
    """One checkpoint for everybody, with a tokenizer whose words are numbers."""
    from transformers import PreTrainedTokenizerFast

    from bench.work import model_config
    from bench.worker import words
    from demeanor.model import checkpoints
    from demeanor.model.initial import initialise
    from demeanor.model.llama import Llama

    policy = Llama(model_config(VOCABULARY, device=device))
    initialise(policy, 0, mimetic=False)
    checkpoints.save(policy, folder)
    words(VOCABULARY, PreTrainedTokenizerFast).save_pretrained(folder)


def prompts(count: int, seed: int) -> list[list[int]]:
    import random

    rng = random.Random(1000 * seed + count)
    return [[rng.randrange(3, VOCABULARY) for _ in range(PROMPT)] for _ in range(count)]


def decoder(who: str, folder: Path, device: str) -> Callable[[list[list[int]]], int]:
    """A function that answers prompts and returns the number of new tokens."""
    import torch

    if who == "demeanor":
        from demeanor.core.types import Decoding
        from demeanor.engine.local import LocalEngine, Request
        from demeanor.model import checkpoints

        class Numbers:
            vocab_size = VOCABULARY

            def decode(self, tokens: tuple[int, ...]) -> str:
                return "".join(f" {t}" for t in tokens)

        model: Any = checkpoints.load(folder).to(device, torch.bfloat16 if device == "cuda" else None)
        engine = LocalEngine(model, Numbers(), num_slots=max(SIZES), max_context=PROMPT + NEW + 1)  # type: ignore[arg-type]
        decoding = Decoding(temperature=0, max_tokens=NEW)
        return lambda asked: sum(map(len, engine.generate([Request(tuple(x), decoding) for x in asked])))
    if who == "vllm":
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found,unused-ignore]

        llm = LLM(str(folder), dtype="bfloat16", max_model_len=PROMPT + NEW + 1, gpu_memory_utilization=0.5)
        settings = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
        return lambda asked: sum(
            len(x.outputs[0].token_ids)
            for x in llm.generate([{"prompt_token_ids": p} for p in asked], settings, use_tqdm=False)
        )
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    model.generation_config.eos_token_id = None

    def run(asked: list[list[int]]) -> int:
        ids = torch.tensor(asked, device=device)
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                cache_implementation="static" if device == "cuda" else None,  # compiled, with CUDA graphs
            )
        return int(found[:, PROMPT:].numel())

    return run


def rows(count: int) -> list[tuple[list[int], list[list[int]]]]:
    from bench.work import fixed

    return fixed(256, 256)(count)


def trainer(who: str, folder: Path, device: str) -> Callable[[], list[float]]:
    """A function that makes STEPS optimiser steps of 8 rows of 512 tokens and returns the seconds of each."""
    import torch

    made = rows(8 * STEPS)
    name, kind = who.split()
    if name == "demeanor":
        return ours(made, folder, device, kind == "qlora")
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        AutoModelForCausalLM,
        BitsAndBytesConfig,
        PreTrainedTokenizerFast,
        TrainerCallback,
    )
    from trl import SFTConfig, SFTTrainer

    from bench.worker import words

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.marks = [time.perf_counter()]

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            self.marks.append(time.perf_counter())

    quantised: dict[str, Any] = {}
    if kind == "qlora":
        quantised["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **quantised),
        args=SFTConfig(
            output_dir=str(folder.parent / "trl"),
            per_device_train_batch_size=8,
            max_steps=STEPS,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=True,
            use_cpu=device == "cpu",
            completion_only_loss=True,
            max_length=1024,
        ),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [p + cs[0] for p, cs in made],
                "completion_mask": [[0] * len(p) + [1] * len(cs[0]) for p, cs in made],
            }
        ),
        processing_class=words(VOCABULARY, PreTrainedTokenizerFast),
        callbacks=[clock],
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )

    def run() -> list[float]:
        trainer.train()
        return [b - a for a, b in zip(clock.marks, clock.marks[1:])]

    return run


def ours(made: Any, folder: Path, device: str, quantised: bool) -> Callable[[], list[float]]:
    """The loop of `demeanor train` with an adapter, its matrix in NF4 or not."""
    import io
    import shutil
    from functools import partial

    import torch

    from demeanor.core import registry
    from demeanor.data.trees import Branch, Tree
    from demeanor.model import adapters, checkpoints, quantize
    from demeanor.model.heads import policy_outputs
    from demeanor.stack.schema import Adapter, Optim
    from demeanor.training import progress
    from demeanor.training.loop import fit
    from demeanor.training.progress import StageProgress

    trees = [
        Tree(tuple(p), tuple(Branch(tuple(c), (True,) * len(c)) for c in cs), tuple(range(len(cs))))
        for p, cs in made
    ]
    model = checkpoints.load(folder)
    adapters.attach(model, Adapter(rank=16, alpha=32), 0)
    model.to(device)
    if quantised:
        quantize.freeze(model)
    objective = registry.entry("demeanor.objectives", "sft")
    steps = [[list(range(i, i + 8))] for i in range(0, len(trees), 8)]

    def run() -> list[float]:
        out = folder.parent / "out"
        shutil.rmtree(out, ignore_errors=True)
        fit(
            model,
            policy_outputs,
            partial(objective.loss, objective.Spec()),
            trees,
            steps,
            Optim(lr=1e-4, betas=(0.9, 0.999), schedule="constant", warmup=0.0),
            out=out,
            watch=StageProgress("bench", stream=io.StringIO()),
            checkpoint_every_s=1e9,
            dtype=torch.bfloat16 if device == "cuda" else None,
        )
        return [r["seconds"] for r in progress.read_log(out / "ledger.jsonl")]

    return run


def worker(who: str, folder: Path, device: str) -> None:
    """Answer lines: a JSON list [COUNT, SEED] decodes; "train" makes a pass."""
    from demeanor.core import hardware

    hardware.prepare()
    import torch

    run: Any = (decoder if who in DECODERS else trainer)(who, folder, device)

    def reply(value: dict[str, Any]) -> None:
        value["peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6) if device == "cuda" else None
        print("@" + json.dumps(value), flush=True)

    reply({"ready": True})
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        if line.strip() == "train":
            reply({"seconds": run()})
        else:
            asked = prompts(*json.loads(line))
            began = time.perf_counter()
            count = run(asked)
            reply({"seconds": time.perf_counter() - began, "tokens": count})


def started(who: str, folder: Path, device: str) -> Contender | None:
    """A contender, or None with the reason printed."""
    needed = {"vllm": "vllm", "demeanor qlora": "bitsandbytes", "trl qlora": "bitsandbytes"}.get(who)
    if needed and (device == "cpu" or not importlib.util.find_spec(needed)):
        print(f"bench.cuda: {who} is left out: it needs CUDA and the package {needed}")
        return None
    try:
        return Contender(["--worker", who, str(folder), device], who, os.cpu_count() or 1, "bench.cuda")
    except SystemExit as error:
        print(error)
        return None


def race(
    whos: tuple[str, ...], folder: Path, device: str, rounds: int, asked: list[str]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What each contender answered to each line in every round; the first pass warms up."""
    contenders = {who: c for who in whos if (c := started(who, folder, device))}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {who: {a: [] for a in asked} for who in contenders}
    for turn in range(rounds + 1):
        for line in asked:
            for who, contender in contenders.items():
                told = contender.go(line.replace("ROUND", str(turn)))
                if turn:
                    found[who][line].append(told)
    for contender in contenders.values():
        contender.close()
    return found


def table(found: dict[str, dict[str, list[dict[str, Any]]]], ours: str) -> None:
    """Print medians and how many times as long as ours each contender took."""
    total = lambda x: sum(x["seconds"]) if isinstance(x["seconds"], list) else x["seconds"]  # noqa: E731
    for who, lines in found.items():
        for line, told in lines.items():
            ratios = [total(b) / total(a) for a, b in zip(found.get(ours, {}).get(line, []), told)]
            seconds = sorted(map(total, told))[len(told) // 2]
            rate = f"{told[0]['tokens'] / seconds:>10,.0f} tokens/s" if "tokens" in told[0] else ""
            times = "{:.2f} [{:.2f}, {:.2f}] times ours".format(*interval(ratios)) if ratios else ""
            print(f"{who:<16} {line:<14} {seconds:8.3f} s {rate} peak {told[-1]['peak_mb']} MB  {times}")


def sharded(folder: Path, device: str, rounds: int) -> list[dict[str, Any]]:
    """Seconds of an SFT step of `demeanor train` under torchrun, with one process and with one a GPU (2 on a CPU)."""
    import torch

    most = torch.cuda.device_count() if device == "cuda" else 2
    stack, found = folder.parent / "fsdp.yaml", []
    data = folder.parent / "rows.jsonl"
    data.write_text(
        "".join(
            json.dumps({"prompt": " ".join(map(str, p)), "completion": " ".join(map(str, cs[0][:-1]))}) + "\n"
            for p, cs in rows(64)
        )
    )
    stage = {"name": "sft", "objective": "sft", "data": str(data), "batch_rows": 8, "max_tokens": 600}
    stack.write_text(
        json.dumps(
            {"name": "fsdp", "template": "transcript", "weights": {"base": str(folder), "stages": [stage]}}
        )
    )
    for count in sorted({1, most}):
        for round_ in range(rounds):
            out = folder.parent / f"fsdp-{count}-{round_}"
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            subprocess.run(
                [*command, str(count), "-m", "demeanor", "train", str(stack), "--runs", str(out)],
                check=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            logs = [json.loads(x) for p in out.rglob("ledger.jsonl") for x in p.read_text().splitlines()]
            seconds = [x["seconds"] for x in logs if "seconds" in x][1:]
            found.append({"processes": count, "round": round_, "seconds": sorted(seconds)[len(seconds) // 2]})
            print(found[-1], flush=True)
    return found


def main() -> int:
    """Run the chosen parts, print the numbers, write results/cuda.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.cuda", description=__doc__)
    parser.add_argument("--worker", nargs=3, metavar=("WHO", "FOLDER", "DEVICE"), help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker[0], Path(options.worker[1]), options.worker[2])
        return 0
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print("bench.cuda: no CUDA device is here; --device cpu is a dry run with a tiny model")
        return 1
    found: dict[str, Any] = {"device": options.device}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        make(folder, options.device)
        sizes = SIZES if options.device == "cuda" else (1, 4)
        if "decoding" in options.parts:
            asked = [f"[{size}, ROUND]" for size in sizes]
            found["decoding"] = race(DECODERS, folder, options.device, options.rounds, asked)
            table(found["decoding"], "demeanor")
        if "qlora" in options.parts:
            found["qlora"] = race(TRAINERS, folder, options.device, options.rounds, ["train"])
            table(found["qlora"], "demeanor lora")
        if "fsdp" in options.parts:
            found["fsdp"] = sharded(folder, options.device, options.rounds)
    out = ROOT / "results" / f"{options.device}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**found, **origin()}, indent=1) + "\n")
    print(f"written: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
