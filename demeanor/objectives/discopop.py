"""DiscoPOP: the log-ratio modulated loss that a language model found.

Source: Lu et al. 2024 (2406.08414), equation 5.
Page: docs/objectives/discopop.md
"""

from __future__ import annotations

import torch
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
    """Settings of discopop."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    tau: float = Field(
        0.05, gt=0, description="temperature of the switch between the logistic and the exponential loss"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of (1 - s) l(bh) + s exp(-bh), s = sigma(bh / tau).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    scaled_P = spec.beta * found.h_P
    share_P = (scaled_P / spec.tau).sigmoid()
    each_P = -logsigmoid(scaled_P) * (1 - share_P) + torch.exp(-scaled_P) * share_P
    return judged(each_P, found, batch, spec.beta * found.ratio_B)
