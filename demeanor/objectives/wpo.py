"""WPO: DPO with pairs weighted by how likely the policy is to write them.

Source: Zhou et al. 2024 (2406.11827), equations 2 and 4.
Page: docs/objectives/wpo.md
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_sums
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True
STATISTICS = ("collision",)


class Spec(registry.Spec):
    """Settings of wpo."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of w_w w_l -log sigma(beta h), w = exp(mean(log p - log sum_v p(v)^2)), without gradient.

    Metrics: TRL's (rewards/*, logps/*).
    """
    assert outputs.collision_C is not None
    found = gap(outputs, batch)
    aligned_C = (found.logprobs_C - outputs.collision_C).detach()
    weight_B = torch.exp(branch_sums(aligned_C, batch) / found.lengths_B)
    weight_P = weight_B[found.chosen_P] * weight_B[found.rejected_P]
    return judged(
        -logsigmoid(spec.beta * found.h_P) * weight_P,
        found,
        batch,
        spec.beta * found.ratio_B,
        weight=weight_P,
    )
