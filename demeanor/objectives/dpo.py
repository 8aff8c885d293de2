"""DPO and its closest relatives: functions of the gap h of log-ratios (chosen minus rejected).

In: log-probabilities of policy and reference. Out: a sum over prompts of the mean over their pairs, with
TRL's metrics (rewards/*, logps/*). Page: docs/objectives.md.

Deviations:
1. hinge: log-ratios to the reference, as in RSO, instead of SLiC-HF's log-probabilities and its likelihood
term.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import REFERENCE, BetaSpec, Objective, gap, pair_loss, smoothed


class DpoSpec(BetaSpec):
    """Settings of dpo."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")
    nll: float | None = Field(
        None, gt=0, description="weight of the chosen completion's mean negative log-likelihood; null: off"
    )


def dpo(spec: DpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Direct preference optimisation: -(1-e) log sigma(beta h) - e log sigma(-beta h), h in nats.

    With `nll`, a pair also costs nll * -log p(chosen) / length.
    """
    found = gap(outputs, batch)
    each_P = smoothed(spec.beta * found.h_P, spec.label_smoothing)
    if spec.nll is not None:
        each_P = each_P - spec.nll * found.mean_policy_B[found.chosen_P]
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B)


class RobustSpec(BetaSpec):
    """Settings of robust."""

    label_smoothing: float = Field(0.1, ge=0, lt=0.5, description="rate at which labels are flipped")


def robust(spec: RobustSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Unbiased estimate of the DPO loss under flipped labels: [(1-e) l(bh) - e l(-bh)] / (1-2e), l = -log
    sigma."""
    found = gap(outputs, batch)
    scaled_P, flipped = spec.beta * found.h_P, spec.label_smoothing
    each_P = (-(1 - flipped) * logsigmoid(scaled_P) + flipped * logsigmoid(-scaled_P)) / (1 - 2 * flipped)
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B)


class IpoSpec(registry.Spec):
    """Settings of ipo."""

    beta: float = Field(0.1, gt=0, description="tau of the paper: the gap is pulled to 1 / (2 beta)")
    normalise: Literal["sum", "mean"] = Field(
        "mean",
        description="sum: log-ratios of whole completions; mean: per token, as its authors and TRL do",
    )


def ipo(spec: IpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Identity preference optimisation: (h - 1/(2 tau))^2, h summed or per token (nats)."""
    found = gap(outputs, batch)
    ratio_B = found.mean_ratio_B if spec.normalise == "mean" else found.ratio_B
    h_P = ratio_B[found.chosen_P] - ratio_B[found.rejected_P]
    return pair_loss((h_P - 1 / (2 * spec.beta)).square(), found, batch, spec.beta * ratio_B)


class HingeSpec(registry.Spec):
    """Settings of hinge."""

    beta: float = Field(
        0.1, gt=0, description="scale of the log-ratios; the required margin is 1 / beta nats"
    )


def hinge(spec: HingeSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Hinge loss max(0, 1 - beta h): zero once a pair's gap exceeds 1/beta nats."""
    found = gap(outputs, batch)
    return pair_loss((1 - spec.beta * found.h_P).clamp_min(0), found, batch, spec.beta * found.ratio_B)


class LnDpoSpec(registry.Spec):
    """Settings of ln_dpo."""

    beta: float = Field(5.0, gt=0, description="scale of the log-ratios per token; Tulu 3 uses 5")


def ln_dpo(spec: LnDpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Length-normalised DPO (Tulu 3): -log sigma(beta (mean log-ratio of chosen - of rejected))."""
    found = gap(outputs, batch)
    reward_B = spec.beta * found.mean_ratio_B
    return pair_loss(
        -logsigmoid(reward_B[found.chosen_P] - reward_B[found.rejected_P]), found, batch, reward_B
    )


ENTRIES = {
    "dpo": Objective(
        DpoSpec,
        dpo,
        source="Rafailov et al. 2023 (2305.18290), equation 7; "
        "label smoothing: Mitchell 2023 (cDPO note), equation 3; "
        "likelihood term: Pang et al. 2024 (2404.19733, iterative RPO), equation 1",
        ROLES=REFERENCE,
    ),
    "robust": Objective(
        RobustSpec,
        robust,
        source="Ray Chowdhury et al. 2024 (2403.00409), equation 12",
        ROLES=REFERENCE,
    ),
    "ipo": Objective(
        IpoSpec,
        ipo,
        source="Azar et al. 2023 (2310.12036), equation 17",
        ROLES=REFERENCE,
    ),
    "hinge": Objective(
        HingeSpec,
        hinge,
        source="Liu et al. 2023 (2309.06657, RSO), equation 10; "
        "Zhao et al. 2023 (2305.10425, SLiC-HF), equation 1",
        ROLES=REFERENCE,
    ),
    "ln_dpo": Objective(
        LnDpoSpec,
        ln_dpo,
        source="Lambert et al. 2024 (2411.15124, Tulu 3), equation 6",
        ROLES=REFERENCE,
    ),
}
