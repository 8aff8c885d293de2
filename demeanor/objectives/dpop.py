"""DPO-positive: DPO that pays where the chosen completion's likelihood falls below the reference's.

Source: Pal et al. 2024 (2402.13228), equation 3.
Page: docs/objectives/dpop.md
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
    """Settings of dpop."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    penalty: float = Field(
        50.0, ge=0, description="weight of max(0, log ref/pi) of the chosen completion (lambda of the paper)"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta (h - penalty max(0, log ref_w/pi_w))).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    fallen_P = (-found.chosen_ratio_P).clamp_min(0)
    each_P = -logsigmoid(spec.beta * (found.h_P - spec.penalty * fallen_P))
    return judged(each_P, found, batch, spec.beta * found.ratio_B, fallen=fallen_P)
