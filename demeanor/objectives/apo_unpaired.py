"""Anchored preference optimisation on completions that are good or bad on their own: good ones rise, bad ones fall.

Source: D'Oosterlinck et al. 2024 (2408.06266), equation 7, its two terms on separate rows.
Page: docs/objectives/apo_unpaired.md
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_sums

ROWS = "unpaired"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of apo_unpaired."""

    beta: float = Field(0.1, gt=0, description="scale of the log-ratios")
    desirable_weight: float = Field(1.0, gt=0, description="weight of good completions")
    undesirable_weight: float = Field(1.0, gt=0, description="weight of bad completions")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over completions of w (1 - sigma(r)) for good and w sigma(r) for bad ones, r = beta log pi/ref.

    Metrics: rewards/chosen, rewards/rejected.
    """
    assert outputs.logprobs_C is not None
    assert batch.reference_C is not None
    assert batch.label_B is not None
    reward_B = spec.beta * branch_sums(
        outputs.logprobs_C - batch.reference_C.to(outputs.logprobs_C.dtype), batch
    )
    good_B, bad_B = batch.label_B == 1, batch.label_B == 0
    total = (
        spec.desirable_weight * (1 - reward_B[good_B].sigmoid()).sum()
        + spec.undesirable_weight * reward_B[bad_B].sigmoid().sum()
    )
    good, bad, seen_B = good_B.sum().to(total.dtype), bad_B.sum().to(total.dtype), reward_B.detach()
    return Loss(
        total,
        good + bad,
        {"rewards/chosen": (seen_B[good_B].sum(), good), "rewards/rejected": (seen_B[bad_B].sum(), bad)},
    )
