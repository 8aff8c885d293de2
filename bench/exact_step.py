"""`python -m bench.exact_step [--folder MODEL] [--groups 4] [--tokens 128] [--rounds 5]`: what exact values cost in a training step.

Forward and backward of groups of 8 completions that share a prompt, through the torch forward and through the exact
one (model/exact.py), in fp32 and under bf16 autocast; and sampling the same groups. Seconds are of the processor and
one thread, the best of the rounds, so neighbours disturb little. Each contender is a process of its own, for its peak
of memory beyond the loaded model. Without a folder the model has the shape of the demo's (4 layers x 256).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from demeanor.core.types import Decoding
from demeanor.data.trees import Branch, Tree, collate
from demeanor.engine.rollouts import sample_groups
from demeanor.model import checkpoints
from demeanor.model.exact import exact_policy_outputs
from demeanor.model.heads import policy_outputs
from demeanor.model.llama import Llama
from demeanor.stack.schema import ModelShape

G = 8
CONTENDERS = ("torch fp32", "torch bf16", "exact fp32", "exact bf16", "sampling")


class NoText:
    """A tokenizer that costs nothing."""

    def decode(self, tokens: Any) -> str:
        return "x" * len(tokens)


def measured(name: str, folder: Path | None, groups: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Best seconds of forward and backward (or of sampling), and the peak of memory in MB."""
    torch.set_num_threads(1)
    model = checkpoints.create(ModelShape(layers=4, width=256, heads=4, kv_heads=4, context=512), 1702, 0)
    if folder is not None:
        loaded = checkpoints.policy(folder)
        assert isinstance(loaded, Llama), "the exact forward runs Llama-shaped models"
        model = loaded
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, model.config.vocab_size, (count,), generator=draw).tolist())

    prompts = [some(tokens) for _ in range(groups)]
    full = (True,) * tokens
    batch = collate([Tree(p, tuple(Branch(some(tokens), full) for _ in range(G)), (0,) * G) for p in prompts])
    before, found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(rounds + 1):
        start = time.process_time()
        if name == "sampling":
            sample_groups(
                model,
                NoText(),  # type: ignore[arg-type]
                prompts,
                count=G,
                decoding=Decoding(1.0, max_tokens=tokens),
                stop_tokens=frozenset(),
                seeds=lambda prompt, completion: G * prompt + completion,
            )
            found.append((time.process_time() - start, 0.0))
            continue
        model.zero_grad(set_to_none=True)
        outputs = exact_policy_outputs if name.startswith("exact") else policy_outputs
        with torch.autocast("cpu", dtype=torch.bfloat16) if name.endswith("bf16") else nullcontext():
            logprobs_C = outputs(model, batch).logprobs_C
        assert logprobs_C is not None
        middle = time.process_time()
        logprobs_C.sum().backward()  # type: ignore[no-untyped-call]
        found.append((middle - start, time.process_time() - middle))
    best = min(found[1:], key=sum)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "name": name,
        "rows": len(batch.tokens_T),
        "forward": best[0],
        "backward": best[1],
        "mb": peak / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    for name, value in (("groups", 4), ("tokens", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--only", choices=CONTENDERS)
    given = parser.parse_args()
    if given.only is not None:
        print(json.dumps(measured(given.only, given.folder, given.groups, given.tokens, given.rounds)))
        return
    print(f"{'':12}{'rows':>8}{'forward s':>12}{'backward s':>12}{'both s':>10}{'peak MB':>10}")
    for name in CONTENDERS:
        command = [sys.executable, "-m", "bench.exact_step", *sys.argv[1:], "--only", name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row = json.loads(said.splitlines()[-1])
        seconds = (row["forward"], row["backward"], row["forward"] + row["backward"])
        print(
            f"{name:12}{row['rows']:8d}{seconds[0]:12.3f}{seconds[1]:12.3f}{seconds[2]:10.3f}{row['mb']:10.0f}"
        )


if __name__ == "__main__":
    main()
