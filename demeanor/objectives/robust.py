"""Robust DPO: an estimate of the DPO loss that is unbiased when labels are flipped at a known rate.

Source: Ray Chowdhury et al. 2024 (2403.00409), equation 12.
Page: docs/objectives/robust.md
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


class Spec(registry.Spec):
    """Settings of robust."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="rate at which labels are flipped")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of [(1-e) l(bh) - e l(-bh)] / (1-2e), l = -log sigma, h the gap of log-ratios (nats).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    scaled_P, flipped = spec.beta * found.h_P, spec.label_smoothing
    each_P = (-(1 - flipped) * logsigmoid(scaled_P) + flipped * logsigmoid(-scaled_P)) / (1 - 2 * flipped)
    return judged(each_P, found, batch, spec.beta * found.ratio_B)
