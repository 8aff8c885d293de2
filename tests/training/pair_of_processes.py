"""One process of a run: `python pair_of_processes.py FOLDER STOP KIND...`, in the environment of torchrun.

Trains each kind, one after the other, and writes its ledger and model to FOLDER/KIND.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from functools import partial
from io import StringIO
from pathlib import Path

import torch
from safetensors.torch import save_file

from demeanor.core import registry
from demeanor.data.batches import Schedule
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints as models
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_sums, preference_pairs
from demeanor.stack.schema import ModelShape, Optim
from demeanor.training.ema import EMA
from demeanor.training.loop import fit
from demeanor.training.parallel import ProcessGroup, join, leave, settle, shard, whole
from demeanor.training.progress import StageProgress
from demeanor.training.resume import Interrupted

dpo, reward = (registry.entry("demeanor.objectives", kind) for kind in ("dpo", "reward"))

VOCABULARY = 300


def pairs(count: int) -> list[Tree]:
    draw = random.Random(0)
    words = lambda low, high: tuple(draw.randrange(VOCABULARY) for _ in range(draw.randrange(low, high)))  # noqa: E731
    branch = lambda: (lambda t: Branch(t, (True,) * len(t)))(words(2, 9))  # noqa: E731
    return [Tree(words(2, 12), (branch(), branch()), (0, 1)) for _ in range(count)]


def centred(found: Outputs, batch: TokenBatch) -> Loss:
    """A loss with a mean over the step in it."""
    assert found.logprobs_C is not None
    sums_B = branch_sums(found.logprobs_C, batch)
    chosen_P, rejected_P, _ = preference_pairs(batch)
    gap_P = sums_B[chosen_P] - sums_B[rejected_P]
    return Loss(
        (gap_P - gap_P.mean()).square().sum() / 50 - gap_P.sum(), gap_P.new_tensor(float(len(gap_P))), {}
    )


def main() -> int:
    folder, stop, kinds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    torch.set_num_threads(1)
    group = join()
    try:
        for kind in kinds:
            train(folder / kind, kind, stop, group)
    except Interrupted as stopped:
        return stopped.exit_code
    finally:
        leave()
    return 0


def train(folder: Path, kind: str, stop: int, group: ProcessGroup) -> None:
    """Train one kind in all processes; where `stop` is a step, the second process stops it there."""
    trees = pairs(21)
    model: torch.nn.Module = models.create(ModelShape(layers=2, width=32, heads=2, context=64), VOCABULARY, 0)
    if kind == "reward":
        model = models.reward_from(model, 0)  # type: ignore[arg-type]
    shard(model, group)
    reference = (
        [[-5.0 - len(b.tokens) % 3 for b in t.branches for _ in b.tokens] for t in trees]
        if kind == "dpo"
        else None
    )
    judge = {
        "dpo": partial(dpo.loss, dpo.Spec()),
        "reward": partial(reward.loss, reward.Spec()),
        "following": partial(dpo.loss, dpo.Spec()),
        "whole": centred,
    }[kind]

    def batches() -> Schedule:
        return Schedule(trees, batch_rows=7, epochs=2.0, seed=0, micro_tokens=60)

    steps = 0

    class Counting(StageProgress):
        def update(self, step: int, loss: float, tokens: int, flops: float) -> None:
            nonlocal steps
            steps = step
            if step == stop and os.environ["RANK"] == "1":
                signal.raise_signal(signal.SIGINT)

    following = kind == "following"  # an average that is evaluated, and a reference that moves
    optim = Optim(lr=0.003, ema=0.8) if following else Optim(lr=0.003)
    run = reward_outputs if kind == "reward" else policy_outputs

    def evaluate(trained: torch.nn.Module, step: int) -> dict[str, float]:
        logprobs = run(trained, collate(trees[:3])).logprobs_C
        return {} if logprobs is None else {"logprob": float(logprobs.mean())}

    fit(
        model,
        run,
        judge,
        trees,
        batches(),
        optim,
        out=folder,
        watch=Counting("test", stream=StringIO()),
        read_last=kind == "reward",
        reference=reference,
        group=group,
        whole_step=kind == "whole",
        checkpoint_every_s=1e9,
        evaluate=evaluate,
        moving=EMA(model, alpha=0.5, every=2) if following else None,
    )
    settle(model)
    weights = {name: whole(p.detach()).contiguous() for name, p in model.named_parameters()}
    if group.first:
        save_file(weights, folder / "model.safetensors")


if __name__ == "__main__":
    sys.exit(main())
