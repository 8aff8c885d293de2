"""SPPO with hard labels: each log-ratio is pulled to +-1/(2 beta).

Source: Wu et al. 2024 (2405.00675), equation 4.7 with P in {0, 1}.
Page: docs/objectives/sppo.md

Deviations: 1. The win rate of a completion is 1 or 0, where the paper estimates it with a preference model.
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
    """Settings of sppo."""

    beta: float = Field(0.1, gt=0, description="log-ratios are pulled to +-1 / (2 beta) nats")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of (R_w - 1/(2 beta))^2 + (R_l + 1/(2 beta))^2, R = log pi/ref (nats).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    each_P = (found.chosen_ratio_P - 0.5 / spec.beta).square() + (
        found.rejected_ratio_P + 0.5 / spec.beta
    ).square()
    return judged(each_P, found, batch, spec.beta * found.ratio_B)
