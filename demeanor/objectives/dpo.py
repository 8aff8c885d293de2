"""Direct preference optimisation, with label smoothing (cDPO) and an optional likelihood term (RPO).

Source: Rafailov et al. 2023 (2305.18290), equation 7; label smoothing: Mitchell 2023 (cDPO note), equation 3; likelihood term:
Pang et al. 2024 (2404.19733, iterative RPO), equation 1.
Page: docs/objectives/dpo.md
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


class Spec(registry.Spec):
    """Settings of DPO."""

    beta: float = Field(
        0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")
    nll: float | None = Field(
        None, gt=0, description="weight of the chosen completion's mean negative log-likelihood; null: off"
    )


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -(1-e) log sigma(beta h) - e log sigma(-beta h), h the gap of log-ratios (nats).

    With `nll`, a pair also costs nll * -log p(chosen) / length.

    Metrics (TRL's names): rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, logps/chosen, logps/rejected.
    """
    found = gap(outputs, batch)
    each_P = smoothed(spec.beta * found.h_P, spec.label_smoothing)
    if spec.nll is not None:
        each_P = each_P - spec.nll * found.mean_policy_B[found.chosen_P]
    return judged(each_P, found, batch, spec.beta * found.ratio_B)
