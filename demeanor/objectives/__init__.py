"""What objectives share: how one declares itself, and log-ratios, averages and metrics of losses over pairs.

An objective is a pure function (settings, outputs, batch) -> Loss(total, count); it never sees a model, tokenizer, optimiser
or file. The files of this folder list their objectives in ENTRIES; what training must provide is declared there, not in train/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_lengths, branch_sums, preference_pairs


class MovingReference(NamedTuple):
    """How a reference follows the policy: every `every` optimiser steps by the fraction `alpha`."""

    alpha: float
    every: int


@dataclass(frozen=True)
class Objective:
    """One objective: its settings, its loss, where it comes from, and (in capitals, as in a file with one entry) what it needs."""

    Spec: type[registry.Spec]
    loss: Callable[[Any, Outputs, TokenBatch], Loss]
    source: str
    """Paper, year, arXiv number and equation."""
    ROWS: Literal["examples", "preferences", "unpaired"] = "preferences"
    READS: Literal["logprobs", "rewards"] = "logprobs"
    ROLES: tuple[str, ...] = ()
    """Frozen ancestors whose log-probs it reads; `reference` is the only one so far."""
    POLICY: bool = True
    """False: it trains a reward model, which gives no answers."""
    WHOLE_STEP: bool = False
    """Its loss is not a sum over prompts: it must see all rows of an optimiser step at once."""
    KL: bool = False
    """Its rows come with a completion of another prompt beside theirs, on which a KL is estimated."""
    STATISTICS: tuple[Literal["collision"], ...] = ()
    """Fields of Outputs beyond the log-probs that it reads: `collision_C`."""
    MOVING: Callable[[Any], MovingReference] | None = None
    """From its settings, how its reference follows the policy; None: the reference is frozen."""


REFERENCE = ("reference",)


class BetaSpec(registry.Spec):
    """Settings of a loss whose only setting is the pull to the reference."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )


class Gap(NamedTuple):
    """Log-probs of each completion and of each ordered pair, in nats; `ratio_B` is log pi/ref (log pi where there is no reference)."""

    logprobs_C: Tensor
    policy_B: Tensor
    ratio_B: Tensor
    lengths_B: Tensor
    chosen_P: Tensor
    rejected_P: Tensor
    tree_P: Tensor

    @property
    def h_P(self) -> Tensor:
        """The gap of log-ratios, chosen minus rejected (nats)."""
        return self.ratio_B[self.chosen_P] - self.ratio_B[self.rejected_P]

    @property
    def chosen_ratio_P(self) -> Tensor:
        return self.ratio_B[self.chosen_P]

    @property
    def rejected_ratio_P(self) -> Tensor:
        return self.ratio_B[self.rejected_P]

    @property
    def mean_policy_B(self) -> Tensor:
        """Mean log-prob of a completion's tokens (nats)."""
        return self.policy_B / self.lengths_B

    @property
    def mean_ratio_B(self) -> Tensor:
        """Mean log-ratio of a completion's tokens (nats)."""
        return self.ratio_B / self.lengths_B


def gap(outputs: Outputs, batch: TokenBatch, *, reference: bool = True) -> Gap:
    """Log-ratios of all completions and pairs; without `reference` the ratio is the policy's log-prob."""
    assert outputs.logprobs_C is not None
    policy_B = branch_sums(outputs.logprobs_C, batch)
    ratio_B = policy_B
    if reference:
        assert batch.reference_C is not None
        ratio_B = branch_sums(outputs.logprobs_C - batch.reference_C.to(outputs.logprobs_C.dtype), batch)
    chosen_P, rejected_P, tree_P = preference_pairs(batch)
    lengths_B = branch_lengths(batch).clamp_min(1).to(policy_B.dtype)
    return Gap(outputs.logprobs_C, policy_B, ratio_B, lengths_B, chosen_P, rejected_P, tree_P)


def per_prompt(each_P: Tensor, tree_P: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Sum over prompts of the mean over their pairs, and how many prompts have a pair."""
    num_trees = int(batch.tree_B.max()) + 1 if batch.tree_B.numel() else 0
    pairs_N = each_P.new_zeros(num_trees).index_add(0, tree_P, each_P.new_ones(len(tree_P)))
    total = (each_P / pairs_N[tree_P]).sum()
    return total, (pairs_N > 0).sum().to(total.dtype)


def pair_loss(
    each_P: Tensor, found: Gap, batch: TokenBatch, reward_B: Tensor, *, pooled: bool = False, **more_P: Tensor
) -> Loss:
    """The Loss of one value per pair, with TRL's metrics; `reward_B` is the implicit reward they show, `more_P` further means.

    `pooled`: the values belong to no pair any more (they were sorted), so all weigh the same.
    """
    total, prompts = per_prompt(each_P, found.tree_P, batch)
    if pooled:
        total = each_P.sum() * prompts / max(len(each_P), 1)
    count = each_P.new_tensor(float(len(each_P)))
    reward_B, policy_B = reward_B.detach(), found.policy_B.detach()
    chosen_P, rejected_P = reward_B[found.chosen_P], reward_B[found.rejected_P]
    metrics = {
        "rewards/chosen": (chosen_P.sum(), count),
        "rewards/rejected": (rejected_P.sum(), count),
        "rewards/accuracies": ((chosen_P > rejected_P).to(each_P.dtype).sum(), count),
        "rewards/margins": ((chosen_P - rejected_P).sum(), count),
        "logps/chosen": (policy_B[found.chosen_P].sum(), count),
        "logps/rejected": (policy_B[found.rejected_P].sum(), count),
    }
    return Loss(
        total, prompts, metrics | {name: (value.detach().sum(), count) for name, value in more_P.items()}
    )


def smoothed(scaled_P: Tensor, smoothing: float) -> Tensor:
    """-(1-e) log sigma(x) - e log sigma(-x): a label is flipped with probability e."""
    sigmoid = torch.nn.functional.logsigmoid
    return -(1 - smoothing) * sigmoid(scaled_P) - smoothing * sigmoid(-scaled_P)
