"""LD-DPO: tokens beyond the shorter completion's length count only in part.

Source: Liu et al. 2024 (2409.06411), equation 10.
Page: docs/objectives/ld_dpo.md
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_lengths
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of ld_dpo."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    alpha: float = Field(
        0.5, ge=0, le=1, description="weight of the tokens beyond the length both completions have; 1 is DPO"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta h'), h' with weight alpha on tokens beyond min(|y_w|, |y_l|).

    Metrics: TRL's (rewards/*, logps/*).
    """
    assert batch.reference_C is not None
    found = gap(outputs, batch)
    ratio_C = found.logprobs_C - batch.reference_C.to(found.logprobs_C.dtype)
    lengths_B = branch_lengths(batch)
    shared_P = torch.minimum(lengths_B[found.chosen_P], lengths_B[found.rejected_P])
    chosen_P, rejected_P = (
        _weighted(ratio_C, side, shared_P, lengths_B, spec.alpha)
        for side in (found.chosen_P, found.rejected_P)
    )
    return judged(-logsigmoid(spec.beta * (chosen_P - rejected_P)), found, batch, spec.beta * found.ratio_B)


def _weighted(ratio_C: Tensor, side_P: Tensor, shared_P: Tensor, lengths_B: Tensor, alpha: float) -> Tensor:
    """Log-ratio of one side of each pair: its first `shared_P` tokens in full, the others times alpha."""
    first_B, lengths_P = lengths_B.cumsum(0) - lengths_B, lengths_B[side_P]
    # S: the scored tokens of all sides, a branch's once per pair it is in
    pair_S = torch.repeat_interleave(torch.arange(len(side_P), device=side_P.device), lengths_P)
    place_S = torch.arange(len(pair_S), device=side_P.device) - (lengths_P.cumsum(0) - lengths_P)[pair_S]
    values_S = ratio_C[first_B[side_P][pair_S] + place_S]
    weights_S = torch.where(place_S < shared_P[pair_S], 1.0, alpha).to(values_S.dtype)
    return values_S.new_zeros(len(side_P)).index_add(0, pair_S, weights_S * values_S)
