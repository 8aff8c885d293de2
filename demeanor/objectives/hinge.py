"""Hinge loss on the gap of log-ratios (SLiC-HF's calibration term, as RSO writes it).

Source: Liu et al. 2023 (2309.06657, RSO), equation 10; Zhao et al. 2023 (2305.10425, SLiC-HF), equation 1.
Page: docs/objectives/hinge.md

Deviations: 1. Log-ratios to the reference, as RSO, instead of SLiC-HF's log-probs and its own likelihood term.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of hinge."""

    beta: float = Field(
        0.1, gt=0, description="scale of the log-ratios; the margin asked for is 1 / beta nats"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of max(0, 1 - beta h), h the gap of log-ratios (nats).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    return judged((1 - spec.beta * found.h_P).clamp_min(0), found, batch, spec.beta * found.ratio_B)
