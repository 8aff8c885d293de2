"""Anchored preference optimisation: says whether the chosen completion should rise (zero) or fall (down).

Source: D'Oosterlinck et al. 2024 (2408.06266), equations 7 and 8.
Page: docs/objectives/apo.md
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of apo."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    variant: Literal["zero", "down"] = Field(
        "zero",
        description="zero: chosen is better than what the model writes and rises; down: worse, falls, the rejected falls more",
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of 1 - sigma(r_w) + sigma(r_l) (zero) or sigma(r_w) + 1 - sigma(r_w - r_l) (down).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    reward_B = spec.beta * found.ratio_B
    chosen_P, rejected_P = reward_B[found.chosen_P], reward_B[found.rejected_P]
    if spec.variant == "zero":
        each_P = 1 - chosen_P.sigmoid() + rejected_P.sigmoid()
    else:
        each_P = chosen_P.sigmoid() + 1 - (chosen_P - rejected_P).sigmoid()
    return judged(each_P, found, batch, reward_B)
