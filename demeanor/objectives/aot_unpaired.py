"""AOT, unpaired: the distribution of chosen log-ratios should dominate that of the rejected.

Source: Melnyk et al. 2024 (2406.05882), equations 7 and 8.
Page: docs/objectives/aot_unpaired.md

Deviations: 1. As many chosen as rejected: rows are comparisons whose pairing is forgotten. 2. Every pair weighs the
same, as in aot.
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
    """Settings of aot_unpaired."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Prompts times the mean over pairs of -log sigma(beta (chosen log-ratios sorted - rejected's)), sorted over the optimiser step.

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    sorted_P = found.chosen_ratio_P.sort().values - found.rejected_ratio_P.sort().values
    return judged(
        smoothed(spec.beta * sorted_P, spec.label_smoothing),
        found,
        batch,
        spec.beta * found.ratio_B,
        pooled=True,
    )
