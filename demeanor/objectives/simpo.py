"""SimPO: mean log-probs as rewards, no reference, a margin.

Source: Meng et al. 2024 (2405.14734), equation 6.
Page: docs/objectives/simpo.md
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged, smoothed

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ()
POLICY = True


class Spec(registry.Spec):
    """Settings of simpo."""

    beta: float = Field(2.0, gt=0, description="scale of the mean log-probs")
    gamma: float = Field(1.0, ge=0, description="margin asked for between the scaled mean log-probs")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta (mean log p_w - mean log p_l) - gamma).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch, reference=False)
    reward_B = spec.beta * found.mean_policy_B
    each_P = smoothed(
        reward_B[found.chosen_P] - reward_B[found.rejected_P] - spec.gamma, spec.label_smoothing
    )
    return judged(each_P, found, batch, reward_B)
