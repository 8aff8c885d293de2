"""Less common preference losses; the common ones are in dpo.py, reference_free.py and unpaired.py.

In: log-probabilities of policy and (all but alphapo) reference. Out: a sum over prompts of the mean over
their pairs, with TRL's metrics (rewards/*, logps/*). h is the gap of log-ratios, chosen minus rejected
(nats). Page: docs/objectives.md.

Deviations:
1. f_dpo: the alpha divergence is the paper's (f' = (1 - u^-alpha) / alpha); TRL's `f_alpha_divergence_coef`
is 1 - alpha.
2. sppo: the win rate of a completion is 1 or 0; the paper estimates it with a preference model.
3. aot, aot_unpaired: every pair has equal weight, also if prompts have different numbers of pairs: sorted
values belong to no prompt.
4. aot_unpaired: as many chosen as rejected: rows are comparisons whose pairing is ignored.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_lengths, branch_sums
from demeanor.objectives import REFERENCE, BetaSpec, MovingReference, Objective, gap, pair_loss, smoothed

# ---- other functions of a pair's log-ratios ----


class AlphapoSpec(registry.Spec):
    """Settings of alphapo."""

    beta: float = Field(2.0, gt=0, description="scale of the rewards")
    gamma: float = Field(1.0, ge=0, description="required margin between the scaled rewards")
    alpha: float = Field(
        0.25, description="bend of the reward (1 - p^-alpha) / alpha of the mean probability p; 0 is SimPO"
    )


def alphapo(spec: AlphapoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """SimPO with a bent reward: -log sigma(r_w - r_l - gamma), r = beta (1 - p^-alpha) / alpha, p mean
    probability."""
    found = gap(outputs, batch, reference=False)
    mean_B = found.mean_policy_B
    reward_B = spec.beta * (mean_B if spec.alpha == 0 else -torch.expm1(-spec.alpha * mean_B) / spec.alpha)
    each_P = -logsigmoid(reward_B[found.chosen_P] - reward_B[found.rejected_P] - spec.gamma)
    return pair_loss(each_P, found, batch, reward_B)


class ApoSpec(BetaSpec):
    """Settings of apo."""

    variant: Literal["zero", "down"] = Field(
        "zero",
        description="zero: chosen is better than the model's own text and rises; "
        "down: worse, falls, and the rejected falls more",
    )


def apo(spec: ApoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Anchored: 1 - sigma(r_w) + sigma(r_l) (zero) or sigma(r_w) + 1 - sigma(r_w - r_l) (down).

    r = beta log pi/ref.
    """
    found = gap(outputs, batch)
    reward_B = spec.beta * found.ratio_B
    chosen_P, rejected_P = reward_B[found.chosen_P], reward_B[found.rejected_P]
    if spec.variant == "zero":
        each_P = 1 - chosen_P.sigmoid() + rejected_P.sigmoid()
    else:
        each_P = chosen_P.sigmoid() + 1 - (chosen_P - rejected_P).sigmoid()
    return pair_loss(each_P, found, batch, reward_B)


class DiscopopSpec(BetaSpec):
    """Settings of discopop."""

    tau: float = Field(
        0.05, gt=0, description="temperature of the switch between the logistic and the exponential loss"
    )


def discopop(spec: DiscopopSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Loss found by a language model: (1 - s) l(bh) + s exp(-bh), s = sigma(bh / tau), l = -log sigma."""
    found = gap(outputs, batch)
    scaled_P = spec.beta * found.h_P
    share_P = (scaled_P / spec.tau).sigmoid()
    each_P = -logsigmoid(scaled_P) * (1 - share_P) + torch.exp(-scaled_P) * share_P
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B)


class DpopSpec(BetaSpec):
    """Settings of dpop."""

    penalty: float = Field(
        50.0, ge=0, description="weight of max(0, log ref/pi) of the chosen completion (lambda of the paper)"
    )


def dpop(spec: DpopSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """DPO-positive: -log sigma(beta (h - penalty max(0, log ref_w/pi_w))).

    The penalty applies where the chosen completion falls below the reference.
    """
    found = gap(outputs, batch)
    fallen_P = (-found.chosen_ratio_P).clamp_min(0)
    each_P = -logsigmoid(spec.beta * (found.h_P - spec.penalty * fallen_P))
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B, fallen=fallen_P)


class ExoSpec(BetaSpec):
    """Settings of exo."""

    label_smoothing: float = Field(
        1.0e-3, gt=0, lt=0.5, description="probability given to the rejected completion"
    )


def exo(spec: ExoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Reverse KL from the policy's preference to the label: KL([sigma(bh), sigma(-bh)] || [1-e, e])."""
    found = gap(outputs, batch)
    scaled_P, e = spec.beta * found.h_P, spec.label_smoothing
    each_P = scaled_P.sigmoid() * (logsigmoid(scaled_P) - math.log1p(-e)) + (-scaled_P).sigmoid() * (
        logsigmoid(-scaled_P) - math.log(e)
    )
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B)


class FDpoSpec(BetaSpec):
    """Settings of f_dpo."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = Field(
        "js", description="pull to the reference; reverse_kl is DPO"
    )
    alpha: float = Field(
        0.5, gt=0, lt=1, description="order of the alpha divergence (read where divergence is alpha)"
    )


def f_dpo(spec: FDpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """DPO with another divergence: -log sigma(beta (f'(pi_w/ref_w) - f'(pi_l/ref_l)))."""
    found = gap(outputs, batch)
    reward_B = spec.beta * _slope(found.ratio_B, spec.divergence, spec.alpha)
    return pair_loss(
        -logsigmoid(reward_B[found.chosen_P] - reward_B[found.rejected_P]), found, batch, reward_B
    )


def _slope(ratio_B: Tensor, divergence: str, alpha: float) -> Tensor:
    """Return f'(pi/ref) of a divergence, up to a constant, from log pi/ref (nats); exponents are clamped
    at 80."""
    if divergence == "forward_kl":
        return -torch.exp((-ratio_B).clamp_max(80.0))
    if divergence == "js":
        return logsigmoid(ratio_B)
    if divergence == "alpha":
        return -torch.exp((-alpha * ratio_B).clamp_max(80.0)) / alpha
    return ratio_B


def nca(spec: BetaSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Absolute likelihoods: -log sigma(r_w) - log sigma(-r_w)/2 - log sigma(-r_l)/2, r = beta log pi/ref."""
    found = gap(outputs, batch)
    reward_B = spec.beta * found.ratio_B
    chosen_P, rejected_P = reward_B[found.chosen_P], reward_B[found.rejected_P]
    each_P = -logsigmoid(chosen_P) - 0.5 * logsigmoid(-chosen_P) - 0.5 * logsigmoid(-rejected_P)
    return pair_loss(each_P, found, batch, reward_B)


class SppoSpec(registry.Spec):
    """Settings of sppo."""

    beta: float = Field(0.1, gt=0, description="log-ratios are pulled to +-1 / (2 beta) nats")


def sppo(spec: SppoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Squared distance of log-ratios R (nats) to their targets: (R_w - 1/(2 beta))^2 + (R_l + 1/(2
    beta))^2."""
    found = gap(outputs, batch)
    target = 0.5 / spec.beta
    each_P = (found.chosen_ratio_P - target).square() + (found.rejected_ratio_P + target).square()
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B)


# ---- lengths and weights ----


class RDpoSpec(BetaSpec):
    """Settings of r_dpo."""

    alpha: float = Field(
        0.01,
        ge=0,
        description="what raters pay for a token: that much of a preference is explained by length alone",
    )


def r_dpo(spec: RDpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """DPO with a length penalty: -log sigma(beta h + alpha (|y_w| - |y_l|)), lengths in tokens.

    The policy that maximises r - alpha |y| - beta KL has r = beta log pi/ref + alpha |y| + a constant.
    """
    found = gap(outputs, batch)
    longer_P = found.lengths_B[found.chosen_P] - found.lengths_B[found.rejected_P]
    each_P = -logsigmoid(spec.beta * found.h_P + spec.alpha * longer_P)
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B, longer=longer_P)


class LdDpoSpec(BetaSpec):
    """Settings of ld_dpo."""

    alpha: float = Field(
        0.5, ge=0, le=1, description="weight of the tokens beyond the length both completions have; 1 is DPO"
    )


def ld_dpo(spec: LdDpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """DPO with weight alpha on tokens beyond min(|y_w|, |y_l|): -log sigma(beta h')."""
    assert batch.reference_C is not None
    found = gap(outputs, batch)
    ratio_C = found.logprobs_C - batch.reference_C.to(found.logprobs_C.dtype)
    lengths_B = branch_lengths(batch)
    shared_P = torch.minimum(lengths_B[found.chosen_P], lengths_B[found.rejected_P])
    chosen_P, rejected_P = (
        _weighted(ratio_C, side, shared_P, lengths_B, spec.alpha)
        for side in (found.chosen_P, found.rejected_P)
    )
    each_P = -logsigmoid(spec.beta * (chosen_P - rejected_P))
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B)


def _weighted(ratio_C: Tensor, side_P: Tensor, shared_P: Tensor, lengths_B: Tensor, alpha: float) -> Tensor:
    """Return the log-ratio of one side of each pair: its first `shared_P` tokens in full, the others times
    alpha."""
    first_B, lengths_P = lengths_B.cumsum(0) - lengths_B, lengths_B[side_P]
    # S: the scored tokens of all sides, a branch's once per pair it is in
    pair_S = torch.repeat_interleave(torch.arange(len(side_P), device=side_P.device), lengths_P)
    place_S = torch.arange(len(pair_S), device=side_P.device) - (lengths_P.cumsum(0) - lengths_P)[pair_S]
    values_S = ratio_C[first_B[side_P][pair_S] + place_S]
    weights_S = torch.where(place_S < shared_P[pair_S], 1.0, alpha).to(values_S.dtype)
    return values_S.new_zeros(len(side_P)).index_add(0, pair_S, weights_S * values_S)


def wpo(spec: BetaSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """DPO weighted by the policy's likelihood of a pair: w_w w_l -log sigma(beta h).

    w = exp(mean(log p - log sum_v p(v)^2)), without gradient.
    """
    assert outputs.collision_C is not None
    found = gap(outputs, batch)
    aligned_C = (found.logprobs_C - outputs.collision_C).detach()
    weight_B = torch.exp(branch_sums(aligned_C, batch) / found.lengths_B)
    weight_P = weight_B[found.chosen_P] * weight_B[found.rejected_P]
    each_P = -logsigmoid(spec.beta * found.h_P) * weight_P
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B, weight=weight_P)


# ---- distributions over the step, and a reference that moves ----


class AotSpec(BetaSpec):
    """Settings of aot and aot_unpaired."""

    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")


def aot(spec: AotSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Prompts x mean of -log sigma(beta (sorted policy margins - sorted reference margins)), over the
    step."""
    assert batch.reference_C is not None
    found = gap(outputs, batch)
    policy_P = found.policy_B[found.chosen_P] - found.policy_B[found.rejected_P]
    reference_P = policy_P.detach() - found.h_P.detach()
    sorted_P = policy_P.sort().values - reference_P.sort().values
    each_P = smoothed(spec.beta * sorted_P, spec.label_smoothing)
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B, pooled=True)


def aot_unpaired(spec: AotSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Prompts x mean of -log sigma(beta (sorted chosen log-ratios - sorted rejected ones)), over the step."""
    found = gap(outputs, batch)
    sorted_P = found.chosen_ratio_P.sort().values - found.rejected_ratio_P.sort().values
    each_P = smoothed(spec.beta * sorted_P, spec.label_smoothing)
    return pair_loss(each_P, found, batch, spec.beta * found.ratio_B, pooled=True)


class TrDpoSpec(BetaSpec):
    """Settings of tr_dpo."""

    alpha: float = Field(
        0.6, gt=0, le=1, description="how far the reference moves to the policy; 1 copies it"
    )
    every: int = Field(512, gt=0, description="optimiser steps between two moves")


def tr_dpo(spec: TrDpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """DPO with a reference that follows the policy: -log sigma(beta h), h against the current reference."""
    found = gap(outputs, batch)
    return pair_loss(-logsigmoid(spec.beta * found.h_P), found, batch, spec.beta * found.ratio_B)


def tr_dpo_moving(spec: TrDpoSpec) -> MovingReference:
    """Return how far and how often the reference moves."""
    return MovingReference(spec.alpha, spec.every)


ENTRIES = {
    "alphapo": Objective(AlphapoSpec, alphapo, source="Gupta et al. 2025 (2501.03884), equations 8 and 9"),
    "apo": Objective(
        ApoSpec, apo, source="D'Oosterlinck et al. 2024 (2408.06266), equations 7 and 8", ROLES=REFERENCE
    ),
    "discopop": Objective(
        DiscopopSpec, discopop, source="Lu et al. 2024 (2406.08414), equation 5", ROLES=REFERENCE
    ),
    "dpop": Objective(DpopSpec, dpop, source="Pal et al. 2024 (2402.13228), equation 3", ROLES=REFERENCE),
    "exo": Objective(ExoSpec, exo, source="Ji et al. 2024 (2402.00856), equation 16", ROLES=REFERENCE),
    "f_dpo": Objective(
        FDpoSpec,
        f_dpo,
        source="Wang et al. 2023 (2309.16240), equation 15 with f' of its table 1",
        ROLES=REFERENCE,
    ),
    "nca": Objective(BetaSpec, nca, source="Chen et al. 2024 (2402.05369), equation 11", ROLES=REFERENCE),
    "sppo": Objective(
        SppoSpec,
        sppo,
        source="Wu et al. 2024 (2405.00675), equation 4.7 with P in {0, 1}",
        ROLES=REFERENCE,
    ),
    "r_dpo": Objective(
        RDpoSpec,
        r_dpo,
        source="Park et al. 2024 (2403.19159), equation 9",
        ROLES=REFERENCE,
        REVISION=1,  # until 2026-11-29 the length term had the wrong sign
    ),
    "ld_dpo": Objective(
        LdDpoSpec, ld_dpo, source="Liu et al. 2024 (2409.06411), equation 10", ROLES=REFERENCE
    ),
    "wpo": Objective(
        BetaSpec,
        wpo,
        source="Zhou et al. 2024 (2406.11827), equations 2 and 4",
        ROLES=REFERENCE,
        STATISTICS=("collision",),
    ),
    "aot": Objective(
        AotSpec,
        aot,
        source="Melnyk et al. 2024 (2406.05882), equations 9 and 10",
        ROLES=REFERENCE,
        WHOLE_STEP=True,
    ),
    "aot_unpaired": Objective(
        AotSpec,
        aot_unpaired,
        source="Melnyk et al. 2024 (2406.05882), equations 7 and 8",
        ROLES=REFERENCE,
        WHOLE_STEP=True,
    ),
    "tr_dpo": Objective(
        TrDpoSpec,
        tr_dpo,
        source="Gorbatovski et al. 2024 (2404.09656), equations 2 to 4",
        ROLES=REFERENCE,
        MOVING=tr_dpo_moving,
    ),
}
