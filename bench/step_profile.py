"""`python -m bench.step_profile --model FOLDER`: where the time of one training step of a real model goes.

Parts are timed inside the real step (bf16, SmolLM2's rows of bench.work): seconds of the processor and of the clock, alone, without the
parts inside them. Beside them stands what a step needs at least: FLOPs at the measured peak, and bytes of weights at the measured speed of
memory. Everything but products and attention grows with the weights, not with the tokens. Writes results/step-profile.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from demeanor.core import hardware

hardware.prepare()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from bench.__main__ import ROOT  # noqa: E402
from bench.work import Work, grouped, works_of  # noqa: E402
from demeanor.core import registry  # noqa: E402
from demeanor.core.files import origin, write_json  # noqa: E402
from demeanor.data.trees import Branch, Tree, collate  # noqa: E402
from demeanor.model import adapters, attention, attention_kernel, checkpoints, fused  # noqa: E402
from demeanor.model.heads import policy_outputs  # noqa: E402
from demeanor.stack.schema import Adapter, Optim  # noqa: E402
from demeanor.training import loop  # noqa: E402
from demeanor.training import optimizer as optimizers  # noqa: E402
from demeanor.training.progress import measured_peak, training_flops  # noqa: E402

BETWEEN = ("norm", "norm_backward", "rotated", "rotated_back", "gated", "gated_backward")
ATTENTION = (attention_kernel.ForestAttention, attention._TreeAttention)


class Stopwatch:
    """Seconds of parts that lie inside each other: each without those inside it."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = {}
        self.wall_s: dict[str, float] = {}
        self._inside: list[list[float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part."""
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        self._inside.append([0.0, 0.0])
        yield
        took = time.process_time() - cpu_s, time.perf_counter() - wall_s
        inside = self._inside.pop()
        for book, whole, theirs in zip((self.cpu_s, self.wall_s), took, inside, strict=True):
            book[name] = book.get(name, 0.0) + whole - theirs
        if self._inside:
            self._inside[-1] = [a + b for a, b in zip(self._inside[-1], took, strict=True)]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that is timed as a part."""

        def run(*given: Any, **more: Any) -> Any:
            with self.part(name):
                return function(*given, **more)

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time the parts of a step in this block."""
        head = fused._TargetLogprobs
        places = [
            (fused.Joint, "of", "products, forward"),
            (fused.Joint, "back", "products, gradients of inputs"),
            (fused, "_slopes", "products, gradients of weights; to fp32"),
            (fused, "_rounded", "weights to bf16"),
            (fused._Head, "rounded", "weights to bf16"),
            (fused, "_added", "gradient of the head to fp32"),
            (torch.nn.utils, "get_total_norm", "norm of the gradient"),
            (loop, "_backward", "backward pass, the rest (last layer, embedding)"),
            *((fused, name, "norms, rotations, gates") for name in BETWEEN),
        ]
        with ExitStack() as stack:
            for owner, name, part in places:
                stack.enter_context(patch.object(owner, name, self.timed(part, getattr(owner, name))))
            for owner in (*ATTENTION, head):
                part = "head and softmax" if owner is head else "attention"
                for name in ("forward", "backward"):
                    given = staticmethod(self.timed(part, getattr(owner, name)))
                    stack.enter_context(patch.object(owner, name, given))
            yield


def trees_of(work: Work) -> list[Tree]:
    """The rows of a piece of work, in batches of similar length."""
    return [
        Tree(tuple(p), tuple(Branch(tuple(c), (True,) * len(c)) for c in cs), tuple(range(len(cs))))
        for p, cs in grouped(work.make(), work.batch)
    ]


def profile(work: Work, steps: int) -> dict[str, Any]:
    """Seconds a step of each part, over `steps` steps after two that warm up."""
    assert work.model is not None
    trees = trees_of(work)
    model = checkpoints.load(work.model)
    if work.lora:
        adapters.attach(model, Adapter(rank=work.lora, alpha=2 * work.lora), 0)
    objective = registry.entry("demeanor.objectives", work.kind)
    loss, optim = partial(objective.loss, objective.Spec()), Optim(lr=1e-5)
    step, flops = optimizers.optimizer(model, optim), training_flops(model, head=True)
    run = loop.running(model, policy_outputs, torch.bfloat16)
    peak = measured_peak("cpu", torch.bfloat16)
    watch, tokens, done = Stopwatch(), 0, 0.0
    for i in range(steps + 2):
        if i == 2:
            watch, tokens, done = Stopwatch(), 0, 0.0
        at = i % work.steps * work.batch
        chosen = trees[at : at + work.batch]
        known = [[-1.0] * sum(len(b.tokens) for b in t.branches) for t in chosen]
        batch = collate(chosen, read_last=False, reference=known if work.kind == "dpo" else None)
        with watch.watching():
            forward = watch.timed("forward pass, the rest", run)
            with watch.part("scaling of gradients, the rest"):
                tokens += loop.accumulate(model, forward, loss, [batch], optim.clip_norm).tokens
            with watch.part("optimizer"):
                step.step()
        done += flops(batch)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "work": work.name,
        "tokens": tokens / steps,
        "flops": done / steps,
        "peak_flops": peak,
        "bytes": bytes_of_weights(trained, adapted=bool(work.lora)),
        "bytes_per_s": memory_speed(),
        "cpu_s": {name: x / steps for name, x in watch.cpu_s.items()},
        "wall_s": {name: x / steps for name, x in watch.wall_s.items()},
        "load": os.getloadavg(),
        **origin(),
    }


def bytes_of_weights(trained: int, *, adapted: bool) -> float:
    """Bytes that a step reads and writes because of weights, beside its products: rounded copies (4 + 2 a weight), gradients from bf16 to
    fp32 (2 + 4), their norm (4) and scale (8), AdamW (16 read, 12 written). Frozen weights are rounded once a run."""
    return trained * (28.0 if adapted else 6.0 + 6.0 + 4.0 + 8.0 + 28.0)


def memory_speed() -> float:
    """Bytes a second that a copy of 256 MB reads and writes: the best of 5."""
    given, taken, found = torch.ones(64 << 20), torch.empty(64 << 20), []
    for _ in range(5):
        began = time.perf_counter()
        taken.copy_(given)
        found.append(time.perf_counter() - began)
    return 2 * given.numel() * 4 / min(found)


def show(found: dict[str, Any]) -> None:
    """Print the parts, the costly ones first, and what the step needs at least."""
    total, wall = sum(found["cpu_s"].values()), sum(found["wall_s"].values())
    title = f"{found['work']}: {found['tokens']:,.0f} tokens a step, load {found['load'][0]:.1f}"
    table = Table(title=title, title_justify="left", box=None)
    for name in ("part", "CPU ms", "of CPU", "ms"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name, cpu_s in sorted(found["cpu_s"].items(), key=lambda x: -x[1]):
        table.add_row(
            name, f"{cpu_s * 1e3:,.0f}", f"{cpu_s / total:.1%}", f"{found['wall_s'][name] * 1e3:,.0f}"
        )
    table.add_row("all", f"{total * 1e3:,.0f}", "", f"{wall * 1e3:,.0f}")
    console = Console(width=120)
    console.print(table)
    at_peak, moved = found["flops"] / found["peak_flops"], found["bytes"] / found["bytes_per_s"]
    console.print(
        f"at least: {found['flops'] / 1e9:,.0f} GFLOP, {at_peak * 1e3:,.0f} ms at {found['peak_flops'] / 1e9:,.0f} GFLOP/s; "
        f"{found['bytes'] / 1e9:.1f} GB of weights, {moved * 1e3:,.0f} ms at {found['bytes_per_s'] / 1e9:.0f} GB/s; "
        f"the step took {wall * 1e3:,.0f} ms: {at_peak / wall:.0%} of the peak"
    )


def main() -> int:
    """Profile the chosen work and write results/step-profile.json."""
    parser = argparse.ArgumentParser(prog="python -m bench.step_profile", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of real weights (SmolLM2)")
    parser.add_argument("--only", nargs="+", default=["sft, oasst, all weights"], help="names of bench.work")
    parser.add_argument("--rows", type=int, default=4, help="rows a step")
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "step-profile.json")
    options = parser.parse_args()
    chosen = [w for w in works_of(options.model) if w.name in options.only and w.kind in ("sft", "dpo")]
    if len(chosen) < len(options.only):
        names = ", ".join(repr(w.name) for w in works_of(options.model) if w.kind in ("sft", "dpo"))
        parser.error(f"--only: wanted some of {names}")
    found = []
    for work in chosen:
        found.append(profile(replace(work, batch=options.rows), options.steps))
        show(found[-1])
        write_json(options.out, {"profiles": found}, indent=1)
    print(json.dumps({"written": str(options.out)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
