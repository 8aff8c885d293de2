"""One iteration of an online stage as data: rollouts with rewards to token trees, trees to batches, and metrics.

In: rollouts and their rewards. Out: trees that share their prompts, columns of scored tokens, the samples that
advantages are computed from. Pure functions; they know no model, engine or scorer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Outputs, TokenBatch
from demeanor.objectives import Advantages, Samples
from demeanor.stack.schema import OnlineStage
from demeanor.training.generation_eval import repetition
from demeanor.training.loop import to_device
from demeanor.training.reference import MICRO_TOKENS, micro_batches
from demeanor.training.rewards import Rollout, TokenPath

SHOWN = 4  # groups of an iteration that are kept for a reader at every evaluation


class Unit(NamedTuple):
    """A token tree of rollouts: what each branch holds, and the rollout of the iteration it belongs to."""

    tree: Tree
    paths: tuple[TokenPath, ...]
    owners: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        """Number of tokens that the policy wrote in each branch."""
        return [len(path.sampled) for path in self.paths]


class Iteration(NamedTuple):
    """The rollouts of an iteration that train: rewards, costs, the prompt (group) of each, and their trees.

    `units[g]` are the trees of group g: one for the shared prompt, and one for each later prompt.
    """

    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    costs: tuple[float, ...]
    groups: tuple[int, ...]
    units: tuple[tuple[Unit, ...], ...]


# ---- an iteration: sample, score, group ----


def seeds(seed: int, iteration: int, tasks: int, count: int) -> list[list[int]]:
    """The seed of every completion of an iteration, alike after a resume."""
    return [
        [random.Random(f"{seed}/{iteration}/{i}/{g}").getrandbits(62) for g in range(count)]
        for i in range(tasks)
    ]


def iteration_of(
    stage: OnlineStage,
    rolled: Sequence[Sequence[Rollout]],
    rewards: Sequence[float | None],
    costs: Sequence[float | None] | None = None,
) -> Iteration:
    """Put rollouts and rewards together; leaves out what has no reward, or was truncated and is to be masked.

    A truncated answer's reward is lowered with `truncated: penalise`. A rollout in which the policy wrote nothing
    trains nothing.
    """
    settings, flat = stage.rollouts, [(g, r) for g, found in enumerate(rolled) for r in found]
    kept: list[tuple[int, Rollout, float, float]] = []
    for i, (g, rollout) in enumerate(flat):
        reward, cost = rewards[i], 0.0 if costs is None else costs[i]
        masked = settings.truncated == "mask" and not rollout.ended
        if reward is None or cost is None or masked or not any(any(p.written) for p in paths_of(rollout)):
            continue
        if settings.truncated == "penalise" and not rollout.ended:
            reward -= settings.penalty
        kept.append((g, rollout, reward, cost))
    numbers = {g: n for n, g in enumerate(dict.fromkeys(g for g, *_ in kept))}
    units = [
        units_of([(i, rollout) for i, (other, rollout, *_) in enumerate(kept) if other == g]) for g in numbers
    ]
    return Iteration(
        tuple(rollout for _, rollout, _, _ in kept),
        tuple(reward for _, _, reward, _ in kept),
        tuple(cost for *_, cost in kept),
        tuple(numbers[g] for g, *_ in kept),
        tuple(units),
    )


def paths_of(rollout: Rollout) -> tuple[TokenPath, ...]:
    """All paths of a rollout in order, the shared prompt's first."""
    first = TokenPath(rollout.task.tokens, rollout.tokens, rollout.written, rollout.sampled, rollout.kept)
    return (first, *rollout.later)


def units_of(members: Sequence[tuple[int, Rollout]]) -> tuple[Unit, ...]:
    """The trees of one group's rollouts: paths after one prompt share it."""
    by_prompt: dict[tuple[int, ...], list[tuple[int, TokenPath]]] = {}
    for i, rollout in members:
        for path in paths_of(rollout):
            if any(path.written):
                by_prompt.setdefault(path.prompt, []).append((i, path))
    found = []
    for prompt, inside in by_prompt.items():
        branches = tuple(branch_of(path) for _, path in inside)
        tree = Tree(prompt, branches, (0,) * len(branches), source=members[0][1].task.source)
        found.append(Unit(tree, tuple(path for _, path in inside), tuple(i for i, _ in inside)))
    return tuple(found)


def branch_of(path: TokenPath) -> Branch:
    """A path as a branch, up to the last token that the policy wrote."""
    end = max(i + 1 for i, mine in enumerate(path.written) if mine)
    return Branch(path.tokens[:end], path.written[:end])


def ranked(found: Iteration, rows: str) -> Iteration:
    """What an offline objective trains on: the best and the worst of each group, or for `examples` the best.

    A group whose rewards are all equal has nothing better and is left out; of equal rewards the first counts.
    A pair that layers gave different prompts is left out too. The losses are of the policy itself, so neither
    temperature nor truncated sampling has a part in them.
    """
    chosen: list[tuple[int, ...]] = []
    for g in range(len(found.units)):
        mine = [i for i, group in enumerate(found.groups) if group == g]
        best = max(mine, key=lambda i: (found.rewards[i], -i))
        worst = min(mine, key=lambda i: (found.rewards[i], i))
        if found.rewards[best] > found.rewards[worst]:
            chosen.append((best, worst) if rows == "preferences" else (best,))
    flat = [i for pair in chosen for i in pair]
    units = []
    for pair in chosen:
        first = [paths_of(found.rollouts[i])[0]._replace(kept=()) for i in pair]
        if all(any(path.written) and path.prompt == first[0].prompt for path in first):
            branches = tuple(map(branch_of, first))
            tree = Tree(first[0].prompt, branches, tuple(range(len(branches))))
            units.append((Unit(tree, tuple(first), tuple(flat.index(i) for i in pair)),))
    return Iteration(
        tuple(found.rollouts[i] for i in flat),
        tuple(found.rewards[i] for i in flat),
        (),
        tuple(n for n, pair in enumerate(chosen) for _ in pair),
        tuple(units),
    )


# ---- trees to batches ----

Columns = dict[str, list[Tensor]]
"""Values of scored tokens by name, one tensor a unit."""


def batch_of(
    units: Sequence[Unit], columns: Columns, chosen: Sequence[int], temperature: float, device: torch.device
) -> TokenBatch:
    """The batch of some units with their columns, on a device."""
    batch = collate([units[i].tree for i in chosen])
    found: dict[str, Any] = {
        name: torch.cat([parts[i] for i in chosen]) if chosen else torch.empty(0)
        for name, parts in columns.items()
    }
    if temperature != 1.0:
        found["temperature_C"] = torch.full((batch.scored_C.numel(),), temperature)
    kept = [k for i in chosen for p in units[i].paths for k in (p.kept or ((),) * len(p.sampled))]
    if any(kept):
        found["kept_K"] = torch.tensor([token for k in kept for token in k], dtype=torch.int64)
        found["kept_of_K"] = torch.tensor([c for c, k in enumerate(kept) for _ in k], dtype=torch.int64)
    return to_device(batch._replace(**found), device)


def minibatches(
    units: Sequence[Unit], groups: Sequence[Sequence[int]], count: int, micro_tokens: int = MICRO_TOKENS
) -> list[list[list[int]]]:
    """Cut groups of units into `count` optimiser steps, each into micro-batches of trees of similar length."""
    size = max(1, math.ceil(len(groups) / count))
    cuts = [
        [i for group in groups[start : start + size] for i in group] for start in range(0, len(groups), size)
    ]
    found = [
        [[cut[i] for i in part] for part in micro_batches([units[i].tree for i in cut], micro_tokens)]
        for cut in cuts
    ]
    return found + [[] for _ in range(count - len(found))]


def samples_of(
    found: Iteration, units: Sequence[Unit], columns: Columns, beta: float
) -> tuple[Samples, Tensor]:
    """All trained tokens, those of a rollout together and in order; and where each stands in the units' order."""
    owner_C = torch.cat(
        [torch.full((n,), owner) for unit in units for owner, n in zip(unit.owners, unit.lengths)]
    )
    order_C = torch.argsort(owner_C, stable=True)
    joined = {name: torch.cat(parts)[order_C] for name, parts in columns.items()}
    samples = Samples(
        reward_B=torch.tensor(found.rewards),
        group_B=torch.tensor(found.groups),
        branch_C=owner_C[order_C],
        sampled_C=joined["sampled_C"],
        reference_C=joined.get("reference_C"),
        value_C=joined.get("value_C"),
        beta=beta,
    )
    return samples, order_C


MISMATCH = ("kl_sample_train_v1", "kl_sample_train_v2")


def mismatch(outputs: Outputs, batch: TokenBatch) -> dict[str, tuple[Tensor, Tensor]]:
    """How far trainer and sampler are apart: k1 and k2 of log q - log p (nats per token), and the largest gap.

    They are of the weights that sampled only in the first step of an iteration.
    """
    if batch.sampled_C is None or outputs.logprobs_C is None:
        return {}
    gap_C = batch.sampled_C - outputs.logprobs_C.detach().to(batch.sampled_C.dtype)
    count = gap_C.new_tensor(float(gap_C.numel()))
    return {
        "kl_sample_train_v1": (gap_C.sum(), count),
        "kl_sample_train_v2": (0.5 * gap_C.square().sum(), count),
    }


# ---- metrics ----


def rollout_metrics(
    rolled: Sequence[Sequence[Rollout]], refused: Callable[[str], bool] | None
) -> dict[str, float]:
    """Lengths (tokens that the policy wrote in all turns) of all and of finished answers, and shares of answers."""
    everyone = [rollout for rollouts in rolled for rollout in rollouts]
    lengths = [sum(len(path.sampled) for path in paths_of(r)) for r in everyone]
    finished = [length for r, length in zip(everyone, lengths) if r.ended]
    found = {
        "completions/mean_length": fmean(lengths),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": fmean(not r.ended and r.error is None for r in everyone),
        "completions/repetition": fmean(repetition(r.tokens) for r in everyone),
        "completions/failed": fmean(r.error is not None for r in everyone),
    }
    if finished:
        found["completions/mean_terminated_length"] = fmean(finished)
    if refused is not None:
        found["completions/refused"] = fmean(refused(r.text) for r in everyone)
    return found


def sample_metrics(samples: Samples, trained: Advantages) -> dict[str, float]:
    """What the objective measured, and the KL to the reference per token by k1.

    k1 is unbiased here, since the tokens are the policy's own draws; k3 is for samples of something else.
    """
    found = {name: float(total / count) for name, (total, count) in trained.metrics.items() if float(count)}
    if samples.reference_C is not None:
        found["kl/token"] = float((samples.sampled_C - samples.reference_C).mean())
        found["kl/coefficient"] = samples.beta
    return found


def examples(found: Iteration) -> Iterator[dict[str, Any]]:
    """The first groups of an iteration as rows for a reader: prompt, answers, rewards."""
    for rollout, reward, group in zip(found.rollouts, found.rewards, found.groups):
        if group < SHOWN:
            task = rollout.task
            yield {
                "prompt": task.messages[-1].content if task.messages else task.source,
                "answer": rollout.text,
                "ended": rollout.ended,
                "tokens": sum(len(path.sampled) for path in paths_of(rollout)),
                "reward": reward,
            }
