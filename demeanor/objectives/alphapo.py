"""AlphaPO: SimPO with a reward that bends with alpha.

Source: Gupta et al. 2025 (2501.03884), equations 8 and 9.
Page: docs/objectives/alphapo.md
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ()
POLICY = True


class Spec(registry.Spec):
    """Settings of alphapo."""

    beta: float = Field(2.0, gt=0, description="scale of the rewards")
    gamma: float = Field(1.0, ge=0, description="margin asked for between the scaled rewards")
    alpha: float = Field(
        0.25, description="bend of the reward (1 - p^-alpha) / alpha of the mean probability p; 0 is SimPO"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(r_w - r_l - gamma), r = beta (1 - p^-alpha) / alpha, p the mean probability.

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch, reference=False)
    mean_B = found.mean_policy_B
    reward_B = spec.beta * (mean_B if spec.alpha == 0 else -torch.expm1(-spec.alpha * mean_B) / spec.alpha)
    each_P = -logsigmoid(reward_B[found.chosen_P] - reward_B[found.rejected_P] - spec.gamma)
    return judged(each_P, found, batch, reward_B)
