"""AOT, paired: the whole distribution of policy margins should dominate the reference's.

Source: Melnyk et al. 2024 (2406.05882), equations 9 and 10.
Page: docs/objectives/aot.md

Deviations: 1. Every pair weighs the same, also where prompts have unequally many: what was sorted belongs to no prompt.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged, smoothed

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True
WHOLE_STEP = True


class Spec(registry.Spec):
    """Settings of aot."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Prompts times the mean over pairs of -log sigma(beta (policy margins sorted - reference's sorted)), sorted over the optimiser step.

    Metrics: TRL's (rewards/*, logps/*).
    """
    assert batch.reference_C is not None
    found = gap(outputs, batch)
    policy_P = found.policy_B[found.chosen_P] - found.policy_B[found.rejected_P]
    reference_P = policy_P.detach() - found.h_P.detach()
    sorted_P = policy_P.sort().values - reference_P.sort().values
    return judged(
        smoothed(spec.beta * sorted_P, spec.label_smoothing),
        found,
        batch,
        spec.beta * found.ratio_B,
        pooled=True,
    )
