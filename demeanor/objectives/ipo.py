"""Identity preference optimisation: a gap of log-ratios that is pulled to 1/(2 tau) and no further.

Source: Azar et al. 2023 (2310.12036), equation 17.
Page: docs/objectives/ipo.md
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
    """Settings of ipo."""

    beta: float = Field(0.1, gt=0, description="tau of the paper: the gap is pulled to 1 / (2 beta)")
    normalise: Literal["sum", "mean"] = Field(
        "mean",
        description="sum: log-ratios of whole completions; mean: per token, as the paper's authors and TRL run it",
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of (h - 1/(2 tau))^2, h the gap of log-ratios, summed or per token (nats).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    ratio_B = found.mean_ratio_B if spec.normalise == "mean" else found.ratio_B
    h_P = ratio_B[found.chosen_P] - ratio_B[found.rejected_P]
    return judged((h_P - 1 / (2 * spec.beta)).square(), found, batch, spec.beta * ratio_B)
