"""LD-DPO: tokens beyond the shorter completion's length count only in part.

Source: Liu et al. 2024 (2409.06411), equation 10.
Page: docs/objectives/ld_dpo.md
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from demeanor import registry
from demeanor.objectives._pairs import gap, judged
from demeanor.tensors import Loss, Outputs, TokenBatch, place_in_branch

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of ld_dpo."""

    beta: float = Field(0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the tokens beyond the length both completions have; 1 is DPO")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta h'), h' with weight alpha on tokens beyond min(|y_w|, |y_l|).

    Metrics: TRL's (rewards/*, logps/*).
    """
    assert batch.reference_C is not None
    found = gap(outputs, batch)
    ratio_C = found.logprobs_C - batch.reference_C.to(found.logprobs_C.dtype)
    shared_P = torch.minimum(found.lengths_B[found.chosen_P], found.lengths_B[found.rejected_P])
    place_C = place_in_branch(batch)
    ends_C = ratio_C.cumsum(0)                                  # sums to here over all branches: differences are sums within one
    chosen_P, rejected_P = (_weighted(side, shared_P, found.ratio_B, ratio_C, ends_C, place_C, batch, spec.alpha)
                            for side in (found.chosen_P, found.rejected_P))
    return judged(-logsigmoid(spec.beta * (chosen_P - rejected_P)), found, batch, spec.beta * found.ratio_B)


def _weighted(side_P: Tensor, shared_P: Tensor, ratio_B: Tensor, ratio_C: Tensor, ends_C: Tensor, place_C: Tensor, batch: TokenBatch,
              alpha: float) -> Tensor:
    """Log-ratio of one side of each pair: its first `shared_P` tokens in full, the others times alpha."""
    first_B = torch.zeros_like(batch.last_B).scatter_(0, batch.branch_C[place_C == 0], (place_C == 0).nonzero().squeeze(-1))
    start_P = first_B[side_P]
    full_P = ends_C[start_P + shared_P.long() - 1] - (ends_C[start_P] - ratio_C[start_P])
    return full_P + alpha * (ratio_B[side_P] - full_P)
