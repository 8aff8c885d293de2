"""Objectives: losses for training, each a pure function (settings, outputs, batch) -> Loss(total, count).

In: outputs of a model for a batch. Out: a sum, the number of its terms, and metrics. Objectives know no
model, tokenizer, optimiser or file. The files of this folder list their objectives in ENTRIES, with what
training must provide. Here: the declaration, and shared parts of losses over pairs.
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


class Samples(NamedTuple):
    """Completions of whole groups with their rewards, before advantages; a group is a prompt's completions.

    Completions that could not be scored are not among them. All columns are without gradient.
    """

    reward_B: Tensor  # at the end of each completion, without any KL
    group_B: Tensor  # int64, from 0
    branch_C: Tensor  # completion of each trained token, in order
    sampled_C: Tensor  # log-probs (nats) when they were drawn
    reference_C: Tensor | None = None  # the reference's log-probs (nats)
    value_C: Tensor | None = None  # a critic's values before each token
    beta: float = 0.0  # current coefficient of the KL in the reward (a controller may change it)


class Advantages(NamedTuple):
    """Columns that an objective trains on, and metrics as (sum, count) of the whole iteration."""

    advantage_C: Tensor
    return_C: Tensor | None = None
    metrics: dict[str, tuple[Tensor, Tensor]] = {}


def _no_kl(spec: Any) -> float:
    return 0.0


def _fixed(spec: Any, beta: float, kl: float, completions: int) -> float:
    return beta


def _complete(spec: Any, max_tokens: int) -> Any:
    return spec


@dataclass(frozen=True)
class Online:
    """What an objective on completions of the policy itself declares beside its loss.

    Its loss over a part of an iteration's completions is a sum over them. `count` is what the loop divides
    the sum over all kept completions of an optimiser step by; completions that it left out because their
    advantages are all 0 are in that count, so leaving them out changes nothing.
    """

    advantages: Callable[[Any, Samples], Advantages]
    count: Callable[
        [Any, Tensor], float
    ]  # lengths_B (trained tokens) to the number that its summed loss is divided by
    reference: Callable[[Any], bool]  # does it read reference_C with these settings?
    skips: Callable[[Any], bool]  # has a completion whose advantages are all 0 no gradient at all?
    groups: bool = True  # needs several completions a prompt
    critic: bool = False  # needs values
    beta: Callable[[Any], float] = _no_kl  # the first Samples.beta
    adapt: Callable[[Any, float, float, int], float] = (
        _fixed  # beta, KL (nats a completion) and number of completions of an iteration to the next beta
    )
    resolved: Callable[[Any, int], Any] = (
        _complete  # the settings with rollouts.max_tokens where they are null
    )
    value_init: Callable[[Any], Literal["reward", "zero"]] | None = None  # where a critic starts


@dataclass(frozen=True)
class Objective:
    """One objective: its settings, loss and source, and (in capitals) what it needs from training."""

    Spec: type[registry.Spec]
    loss: Callable[[Any, Outputs, TokenBatch], Loss]
    source: str  # paper, year, arXiv number and equation
    ROWS: Literal["examples", "preferences", "unpaired", "prompts"] = "preferences"  # prompts: with ONLINE
    READS: Literal["logprobs", "rewards"] = "logprobs"
    ROLES: tuple[str, ...] = ()  # frozen ancestors whose log-probabilities it reads; only `reference` so far
    POLICY: bool = True  # False: it trains a reward model
    WHOLE_STEP: bool = False  # not a sum over prompts: it needs all rows of an optimiser step at once
    KL: bool = False  # each row also gets a completion of another prompt, to estimate a KL
    STATISTICS: tuple[Literal["collision"], ...] = ()  # fields of Outputs that it reads, here `collision_C`
    MOVING: Callable[[Any], MovingReference] | None = None  # how its reference moves; None: it is frozen
    REVISION: int = 0  # raised where its loss is corrected: stages trained with the old one train again
    ONLINE: Online | None = (
        None  # it trains on the policy's own completions only; its batches have `sampled_C`
    )


REFERENCE = ("reference",)


class BetaSpec(registry.Spec):
    """Settings of a loss whose only setting is the strength of the pull to the reference."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )


class Gap(NamedTuple):
    """Log-probabilities (nats) of completions and pairs; `ratio_B` is log pi/ref (log pi without a
    reference)."""

    logprobs_C: Tensor
    policy_B: Tensor
    ratio_B: Tensor
    lengths_B: Tensor
    chosen_P: Tensor
    rejected_P: Tensor
    tree_P: Tensor

    @property
    def h_P(self) -> Tensor:
        """Gap of log-ratios, chosen minus rejected (nats)."""
        return self.ratio_B[self.chosen_P] - self.ratio_B[self.rejected_P]

    @property
    def chosen_ratio_P(self) -> Tensor:
        """Log-ratio of each pair's chosen completion (nats)."""
        return self.ratio_B[self.chosen_P]

    @property
    def rejected_ratio_P(self) -> Tensor:
        """Log-ratio of each pair's rejected completion (nats)."""
        return self.ratio_B[self.rejected_P]

    @property
    def mean_policy_B(self) -> Tensor:
        """Mean log-probability of a completion's tokens (nats)."""
        return self.policy_B / self.lengths_B

    @property
    def mean_ratio_B(self) -> Tensor:
        """Mean log-ratio of a completion's tokens (nats)."""
        return self.ratio_B / self.lengths_B


def gap(outputs: Outputs, batch: TokenBatch, *, reference: bool = True) -> Gap:
    """Return log-ratios of all completions and pairs; without `reference` the ratio is the
    log-probability."""
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
    """Return the sum over prompts of the mean over their pairs, and the number of prompts with a pair."""
    num_trees = int(batch.tree_B.max()) + 1 if batch.tree_B.numel() else 0
    pairs_N = each_P.new_zeros(num_trees).index_add(0, tree_P, each_P.new_ones(len(tree_P)))
    total = (each_P / pairs_N[tree_P]).sum()
    return total, (pairs_N > 0).sum().to(total.dtype)


def pair_loss(
    each_P: Tensor, found: Gap, batch: TokenBatch, reward_B: Tensor, *, pooled: bool = False, **more_P: Tensor
) -> Loss:
    """Return the Loss of one value per pair with TRL's metrics; `reward_B` is the implicit reward, `more_P`
    further means.

    `pooled`: the values were sorted and belong to no pair, so all have equal weight.
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
    metrics |= {name: (value.detach().sum(), count) for name, value in more_P.items()}
    return Loss(total, prompts, metrics)


def smoothed(scaled_P: Tensor, smoothing: float) -> Tensor:
    """Return -(1-e) log sigma(x) - e log sigma(-x): a label is flipped with probability e."""
    sigmoid = torch.nn.functional.logsigmoid
    return -(1 - smoothing) * sigmoid(scaled_P) - smoothing * sigmoid(-scaled_P)
