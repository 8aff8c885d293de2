"""R-DPO: DPO that asks more of a longer chosen completion.

Source: Park et al. 2024 (2403.19159), equation 9.
Page: docs/objectives/r_dpo.md
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
    """Settings of r_dpo."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    alpha: float = Field(
        0.01,
        ge=0,
        description="reward a token costs: subtracted for each token the chosen completion is longer",
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta h - alpha (|y_w| - |y_l|)), lengths in tokens.

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    longer_P = found.lengths_B[found.chosen_P] - found.lengths_B[found.rejected_P]
    return judged(
        -logsigmoid(spec.beta * found.h_P - spec.alpha * longer_P),
        found,
        batch,
        spec.beta * found.ratio_B,
        longer=longer_P,
    )
