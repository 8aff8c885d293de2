"""ORPO: likelihood of the chosen completion and the odds ratio of the pair, no reference.

Source: Hong et al. 2024 (2403.07691), equations 4 to 7.
Page: docs/objectives/orpo.md

Deviations: 1. The likelihood term is the mean over the completion's tokens, averaged over prompts; TRL averages over all tokens of
the batch, prompts included. 2. log p is kept below -1e-7, where the odds are infinite.
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
ROLES: tuple[str, ...] = ()
POLICY = True


class Spec(registry.Spec):
    """Settings of orpo."""

    beta: float = Field(0.1, gt=0, description="weight of the odds-ratio term (lambda of the paper)")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -mean log p_w - beta log sigma(log odds_w - log odds_l), odds of the mean probability.

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch, reference=False)
    mean_B = found.mean_policy_B
    odds_B = mean_B - torch.log(-torch.expm1(mean_B.clamp_max(-1e-7)))
    odds_P = odds_B[found.chosen_P] - odds_B[found.rejected_P]
    each_P = -mean_B[found.chosen_P] - spec.beta * logsigmoid(odds_P)
    return judged(
        each_P, found, batch, spec.beta * mean_B, log_odds_ratio=odds_P, nll_loss=-mean_B[found.chosen_P]
    )
