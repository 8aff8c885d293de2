"""Kahneman-Tversky optimisation: completions that are good or bad on their own, valued against a KL estimate.

Source: Ethayarajh et al. 2024 (2402.01306), equations 6 to 8.
Page: docs/objectives/kto.md

Deviations: 1. The KL estimate z0 is the mean over all mismatched completions of the optimiser step (the paper: of the microbatch), so
micro-batches do not change it. 2. A prompt's good and bad completions each count once.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import MISMATCHED, Loss, Outputs, TokenBatch, branch_sums

ROWS = "unpaired"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True
WHOLE_STEP = True
KL = True
"""Rows come with a completion of another prompt beside theirs: z0 is estimated on it."""


class Spec(registry.Spec):
    """Settings of kto."""

    beta: float = Field(0.1, gt=0, description="steepness of the value around the KL estimate")
    desirable_weight: float = Field(
        1.0, gt=0, description="weight of good completions; weight x count of good over bad: 1 to 4/3"
    )
    undesirable_weight: float = Field(1.0, gt=0, description="weight of bad completions")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over labelled completions of w (1 - sigma(+-beta (R - z0))), R = log pi/ref (nats), z0 = max(0, mean R of mismatched ones).

    Metrics: rewards/chosen and rewards/rejected (beta R of good, of bad ones), rewards/margins (their difference), kl (z0).
    """
    assert outputs.logprobs_C is not None
    assert batch.reference_C is not None
    assert batch.label_B is not None
    ratio_B = branch_sums(outputs.logprobs_C - batch.reference_C.to(outputs.logprobs_C.dtype), batch)
    good_B, bad_B, other_B = batch.label_B == 1, batch.label_B == 0, batch.label_B == MISMATCHED
    ones = ratio_B.new_ones(())
    z0 = ratio_B.detach()[other_B].sum().div(other_B.sum().clamp_min(1)).clamp_min(0)
    value_good = 1 - (spec.beta * (ratio_B[good_B] - z0)).sigmoid()
    value_bad = 1 - (spec.beta * (z0 - ratio_B[bad_B])).sigmoid()
    total = spec.desirable_weight * value_good.sum() + spec.undesirable_weight * value_bad.sum()
    count = (good_B | bad_B).sum().to(total.dtype)
    reward_B, good, bad = (
        spec.beta * ratio_B.detach(),
        good_B.sum().to(total.dtype),
        bad_B.sum().to(total.dtype),
    )
    chosen, rejected = reward_B[good_B].sum(), reward_B[bad_B].sum()
    both = ones * float(good > 0 and bad > 0)
    margin = (chosen / good.clamp_min(1) - rejected / bad.clamp_min(1)) * both
    return Loss(
        total,
        count,
        {
            "rewards/chosen": (chosen, good),
            "rewards/rejected": (rejected, bad),
            "rewards/margins": (margin, both),
            "kl": (z0, ones),
        },
    )
