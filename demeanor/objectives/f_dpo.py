"""f-DPO: DPO whose pull to the reference is another divergence.

Source: Wang et al. 2023 (2309.16240), equation 15 with f' of its table 1.
Page: docs/objectives/f_dpo.md

Deviations: 1. The alpha divergence is the paper's (f' = (1 - u^-alpha) / alpha); TRL's `f_alpha_divergence_coef` is 1 - alpha.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of f_dpo."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = Field(
        "js", description="pull to the reference; reverse_kl is DPO"
    )
    alpha: float = Field(
        0.5, gt=0, lt=1, description="order of the alpha divergence (read where divergence is alpha)"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta (f'(pi_w/ref_w) - f'(pi_l/ref_l))).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    reward_B = spec.beta * slope(found.ratio_B, spec.divergence, spec.alpha)
    return judged(-logsigmoid(reward_B[found.chosen_P] - reward_B[found.rejected_P]), found, batch, reward_B)


def slope(ratio_B: Tensor, divergence: str, alpha: float) -> Tensor:
    """f'(pi/ref) of a divergence, up to a constant, from log pi/ref (nats); exponents are held below 80."""
    if divergence == "forward_kl":
        return -torch.exp((-ratio_B).clamp_max(80.0))
    if divergence == "js":
        return logsigmoid(ratio_B)
    if divergence == "alpha":
        return -torch.exp((-alpha * ratio_B).clamp_max(80.0)) / alpha
    return ratio_B
