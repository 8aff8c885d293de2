"""Importance weights for completions whose sampler was not exactly the policy that is trained.

In: log-probs (nats) of the same tokens under the trainer and under the sampler. Out: one weight per token,
without gradient, and how far the two differ. The weights multiply advantages after all centring and before
the first optimiser step; the clipped ratio of an objective is taken against the trainer's log-probs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Mode: TypeAlias = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
METRICS = (
    "kl_sample_train_v1",
    "kl_sample_train_v2",
    "sampler/logprob_difference",
    "sampler/chi2_token",
    "sampler/chi2_sequence",
    "sampler/ess",
    "sampler/limited",
)


class ImportanceWeights(NamedTuple):
    """A weight (>= 0) per token, and metrics as (sum, count)."""

    weight_C: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]]


def importance_weights(
    mode: Mode, cap: float, trainer_C: Tensor, sampled_C: Tensor, branch_C: Tensor
) -> ImportanceWeights:
    """Weights pi_trainer / pi_sampler of tokens, or of whole completions (the product over their tokens).

    `branch_C` is each token's completion. `truncate` lowers a weight above `cap` to it, `mask` sets it to 0.
    A completion's weight makes the gradient unbiased where the cap does not act; a token's weight ignores
    that earlier tokens were drawn by the sampler too, which is a bias, of lower variance.
    Source: Ionides 2008, "Truncated importance sampling"; Yao et al. 2025 (token_truncate); the names are
    those of TRL's vllm_importance_sampling_mode. A weight multiplies the advantage: it is not negative, so
    min(w r A, w clip(r) A) = w min(r A, clip(r) A), and any clipped loss is weighted as a whole.
    """
    difference_C = (trainer_C - sampled_C).detach().double()
    branches = int(branch_C.max()) + 1 if branch_C.numel() else 0
    sequence_B = difference_C.new_zeros(branches).index_add(0, branch_C, difference_C)
    present_B = torch.bincount(branch_C, minlength=branches) > 0
    log_C = sequence_B[branch_C] if mode.startswith("sequence") else difference_C
    weight_C = log_C.clamp_max(math.log(cap)).exp()
    above_C = log_C > math.log(cap)
    if mode == "none":
        weight_C, above_C = torch.ones_like(log_C), torch.zeros_like(above_C)
    elif mode.endswith("mask"):
        weight_C = weight_C.masked_fill(above_C, 0.0)
    tokens = difference_C.new_tensor(float(len(difference_C)))
    # Of the used weights, a completion's once and not once a token.
    one_each = (
        _firsts(branch_C) if mode.startswith("sequence") else torch.ones_like(branch_C, dtype=torch.bool)
    )
    used, limited = weight_C[one_each], above_C[one_each].double()
    count = tokens.new_tensor(float(len(used)))
    metrics = {
        "kl_sample_train_v1": (-difference_C.sum(), tokens),
        "kl_sample_train_v2": (0.5 * difference_C.square().sum(), tokens),
        "sampler/logprob_difference": (difference_C.abs().sum(), tokens),
        "sampler/chi2_token": (_chi2(difference_C).sum(), tokens),
        "sampler/chi2_sequence": (_chi2(sequence_B[present_B]).sum(), present_B.sum().double()),
        "sampler/ess": (used.sum().square() / used.square().sum().clamp_min(1e-300), count),
        "sampler/limited": (limited.sum(), count),
    }
    return ImportanceWeights(weight_C.to(trainer_C.dtype), metrics)


def _chi2(log: Tensor) -> Tensor:
    """w^2 - 1 of log-weights, whose mean under the sampler is the chi-square divergence; at most e^40."""
    return torch.expm1((2 * log).clamp_max(40.0))


def _firsts(branch_C: Tensor) -> Tensor:
    """Mark the first token of each completion."""
    first_C = torch.ones_like(branch_C, dtype=torch.bool)
    seen: set[int] = set()
    for i, branch in enumerate(branch_C.tolist()):
        first_C[i] = branch not in seen
        seen.add(branch)
    return first_C
