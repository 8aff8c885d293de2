"""EXO on pairs: the reverse KL from the policy's preference to the (smoothed) label.

Source: Ji et al. 2024 (2402.00856), equation 16.
Page: docs/objectives/exo.md
"""

from __future__ import annotations

import math

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
    """Settings of exo."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    label_smoothing: float = Field(
        1.0e-3, gt=0, lt=0.5, description="probability given to the rejected completion"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of KL([sigma(bh), sigma(-bh)] || [1-e, e]).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    scaled_P, e = spec.beta * found.h_P, spec.label_smoothing
    each_P = scaled_P.sigmoid() * (logsigmoid(scaled_P) - math.log1p(-e)) + (-scaled_P).sigmoid() * (
        logsigmoid(-scaled_P) - math.log(e)
    )
    return judged(each_P, found, batch, spec.beta * found.ratio_B)
