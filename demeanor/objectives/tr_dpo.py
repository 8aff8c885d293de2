"""TR-DPO: DPO whose reference follows the policy, softly or by copies; `train/` moves it.

Source: Gorbatovski et al. 2024 (2404.09656), equations 2 to 4.
Page: docs/objectives/tr_dpo.md
"""

from __future__ import annotations

from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True
MOVING = True
"""train/ keeps the reference beside the policy and moves it by `alpha` every `every` steps (train/shadow.py)."""


class Spec(registry.Spec):
    """Settings of tr_dpo."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    alpha: float = Field(
        0.6, gt=0, le=1, description="how far the reference moves to the policy; 1 copies it"
    )
    every: int = Field(512, gt=0, description="optimiser steps between two moves")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta h), h against the reference as it stands at this step.

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    return judged(-logsigmoid(spec.beta * found.h_P), found, batch, spec.beta * found.ratio_B)
