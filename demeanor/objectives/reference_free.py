"""Preference losses without a reference model: simpo, cpo, orpo.

In: log-probabilities of the policy. Out: a sum over prompts of the mean over their pairs, with TRL's metrics
(rewards/*, logps/*). Page: docs/objectives.md.

Deviations:
1. cpo: the likelihood term is a mean over the completion's tokens, not their sum.
2. orpo: the likelihood term is the mean over the completion's tokens, averaged over prompts; TRL averages
over all tokens of the batch, prompts included.
3. orpo: log p is clamped at -1e-7, as the odds of 0 are infinite.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import Objective, gap, pair_loss, smoothed


class SimpoSpec(registry.Spec):
    """Settings of simpo."""

    beta: float = Field(2.0, gt=0, description="scale of the mean log-probs")
    gamma: float = Field(1.0, ge=0, description="required margin between the scaled mean log-probs")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")


def simpo(spec: SimpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Mean log-probabilities as rewards: -log sigma(beta (mean log p_w - mean log p_l) - gamma)."""
    found = gap(outputs, batch, reference=False)
    reward_B = spec.beta * found.mean_policy_B
    each_P = smoothed(
        reward_B[found.chosen_P] - reward_B[found.rejected_P] - spec.gamma, spec.label_smoothing
    )
    return pair_loss(each_P, found, batch, reward_B)


class CpoSpec(registry.Spec):
    """Settings of cpo."""

    beta: float = Field(0.1, gt=0, description="scale of the log-probs")
    nll: float | None = Field(
        1.0, gt=0, description="weight of the chosen completion's mean negative log-likelihood; null: off"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")


def cpo(spec: CpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """DPO with a uniform reference and a likelihood term.

    -log sigma(beta (log p_w - log p_l)) - nll * mean log p_w (nats).
    """
    found = gap(outputs, batch, reference=False)
    each_P = smoothed(spec.beta * found.h_P, spec.label_smoothing)
    if spec.nll is not None:
        each_P = each_P - spec.nll * found.mean_policy_B[found.chosen_P]
    return pair_loss(each_P, found, batch, spec.beta * found.policy_B)


class OrpoSpec(registry.Spec):
    """Settings of orpo."""

    beta: float = Field(0.1, gt=0, description="weight of the odds-ratio term (lambda of the paper)")


def orpo(spec: OrpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Likelihood and odds ratio: -mean log p_w - beta log sigma(log odds_w - log odds_l).

    The odds are those of the mean probability.
    """
    found = gap(outputs, batch, reference=False)
    mean_B = found.mean_policy_B
    odds_B = mean_B - torch.log(-torch.expm1(mean_B.clamp_max(-1e-7)))
    odds_P = odds_B[found.chosen_P] - odds_B[found.rejected_P]
    each_P = -mean_B[found.chosen_P] - spec.beta * logsigmoid(odds_P)
    return pair_loss(
        each_P, found, batch, spec.beta * mean_B, log_odds_ratio=odds_P, nll_loss=-mean_B[found.chosen_P]
    )


ENTRIES = {
    "simpo": Objective(SimpoSpec, simpo, source="Meng et al. 2024 (2405.14734), equation 6"),
    "cpo": Objective(CpoSpec, cpo, source="Xu et al. 2024 (2401.08417), equations 3 and 5"),
    "orpo": Objective(OrpoSpec, orpo, source="Hong et al. 2024 (2403.07691), equations 4 to 7"),
}
