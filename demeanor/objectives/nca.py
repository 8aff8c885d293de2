"""NCA on pairs: absolute likelihoods, which keeps the chosen completion's from falling.

Source: Chen et al. 2024 (2402.05369), equation 11.
Page: docs/objectives/nca.md
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
    """Settings of nca."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(r_w) - log sigma(-r_w)/2 - log sigma(-r_l)/2, r = beta log pi/ref.

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    reward_B = spec.beta * found.ratio_B
    chosen_P, rejected_P = reward_B[found.chosen_P], reward_B[found.rejected_P]
    return judged(
        -logsigmoid(chosen_P) - 0.5 * logsigmoid(-chosen_P) - 0.5 * logsigmoid(-rejected_P),
        found,
        batch,
        reward_B,
    )
