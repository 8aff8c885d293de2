"""Contrastive preference optimisation: DPO with a uniform reference, and the likelihood of the chosen completion.

Source: Xu et al. 2024 (2401.08417), equations 3 and 5.
Page: docs/objectives/cpo.md

Deviations: 1. The likelihood term is a mean over the completion's tokens, not their sum.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged, smoothed

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ()
POLICY = True


class Spec(registry.Spec):
    """Settings of cpo."""

    beta: float = Field(0.1, gt=0, description="scale of the log-probs")
    nll: float | None = Field(
        1.0, gt=0, description="weight of the chosen completion's mean negative log-likelihood; null: off"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta (log p_w - log p_l)) - nll * mean log p_w (nats).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch, reference=False)
    each_P = smoothed(spec.beta * found.h_P, spec.label_smoothing)
    if spec.nll is not None:
        each_P = each_P - spec.nll * found.mean_policy_B[found.chosen_P]
    return judged(each_P, found, batch, spec.beta * found.policy_B)
