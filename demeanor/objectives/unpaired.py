"""Losses on completions labelled good or bad: kto, bco, apo_unpaired.

In: log-probabilities of policy and reference, and a label per completion. Out: a sum over completions. Page:
docs/objectives.md.

Deviations:
1. kto: the KL estimate z0 is the mean over all mismatched completions of the optimiser step (the paper: of
the microbatch), so micro-batches do not change it.
2. kto: a prompt's good and bad completions each count once.
3. bco: the shift delta is the mean of good and bad rewards of the optimiser step, not a running mean over
steps: no state outlives a step.
4. bco: no importance weights from an embedding model.
"""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import MISMATCHED, Loss, Outputs, TokenBatch, branch_sums
from demeanor.objectives import REFERENCE, Objective


class Labelled(NamedTuple):
    """Log-ratio of each completion to the reference (nats), masks of good and bad ones, and their numbers."""

    ratio_B: Tensor
    good_B: Tensor
    bad_B: Tensor
    good: Tensor
    bad: Tensor


def labelled(outputs: Outputs, batch: TokenBatch) -> Labelled:
    """Return the inputs of all losses of this file."""
    assert outputs.logprobs_C is not None
    assert batch.reference_C is not None
    assert batch.label_B is not None
    ratio_B = branch_sums(outputs.logprobs_C - batch.reference_C.to(outputs.logprobs_C.dtype), batch)
    good_B, bad_B = batch.label_B == 1, batch.label_B == 0
    return Labelled(ratio_B, good_B, bad_B, good_B.sum().to(ratio_B.dtype), bad_B.sum().to(ratio_B.dtype))


class KtoSpec(registry.Spec):
    """Settings of kto."""

    beta: float = Field(0.1, gt=0, description="steepness of the value around the KL estimate")
    desirable_weight: float = Field(
        1.0, gt=0, description="weight of good completions; weight x count of good over bad: 1 to 4/3"
    )
    undesirable_weight: float = Field(1.0, gt=0, description="weight of bad completions")


def kto(spec: KtoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Kahneman-Tversky: w (1 - sigma(+-beta (R - z0))), R = log pi/ref (nats).

    z0 = max(0, mean R of mismatched completions). Metrics: rewards/chosen and rewards/rejected (beta R of
    good, of bad ones), rewards/margins (their difference), kl (z0).
    """
    assert batch.label_B is not None
    ratio_B, good_B, bad_B, good, bad = labelled(outputs, batch)
    other_B = batch.label_B == MISMATCHED
    z0 = ratio_B.detach()[other_B].sum().div(other_B.sum().clamp_min(1)).clamp_min(0)
    value_good = 1 - (spec.beta * (ratio_B[good_B] - z0)).sigmoid()
    value_bad = 1 - (spec.beta * (z0 - ratio_B[bad_B])).sigmoid()
    total = spec.desirable_weight * value_good.sum() + spec.undesirable_weight * value_bad.sum()
    reward_B = spec.beta * ratio_B.detach()
    chosen, rejected = reward_B[good_B].sum(), reward_B[bad_B].sum()
    ones = ratio_B.new_ones(())
    both = ones * float(good > 0 and bad > 0)
    margin = (chosen / good.clamp_min(1) - rejected / bad.clamp_min(1)) * both
    metrics = {
        "rewards/chosen": (chosen, good),
        "rewards/rejected": (rejected, bad),
        "rewards/margins": (margin, both),
        "kl": (z0, ones),
    }
    return Loss(total, good + bad, metrics)


class BcoSpec(registry.Spec):
    """Settings of bco."""

    beta: float = Field(0.1, gt=0, description="scale of the log-ratios")


def bco(spec: BcoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Binary classifier: -log sigma(+-(r - delta)), r = beta log pi/ref.

    delta is half the sum of mean good and mean bad r. Metrics: rewards/chosen, rewards/rejected,
    rewards/accuracies (on the correct side of delta), delta.
    """
    ratio_B, good_B, bad_B, good, bad = labelled(outputs, batch)
    reward_B = spec.beta * ratio_B
    seen_B = reward_B.detach()
    delta = 0.5 * (seen_B[good_B].sum() / good.clamp_min(1) + seen_B[bad_B].sum() / bad.clamp_min(1))
    total = -logsigmoid(reward_B[good_B] - delta).sum() - logsigmoid(delta - reward_B[bad_B]).sum()
    right = ((seen_B > delta) & good_B).sum() + ((seen_B < delta) & bad_B).sum()
    count = good + bad
    metrics = {
        "rewards/chosen": (seen_B[good_B].sum(), good),
        "rewards/rejected": (seen_B[bad_B].sum(), bad),
        "rewards/accuracies": (right.to(count.dtype), count),
        "delta": (delta, delta.new_ones(())),
    }
    return Loss(total, count, metrics)


class ApoUnpairedSpec(registry.Spec):
    """Settings of apo_unpaired."""

    beta: float = Field(0.1, gt=0, description="scale of the log-ratios")
    desirable_weight: float = Field(1.0, gt=0, description="weight of good completions")
    undesirable_weight: float = Field(1.0, gt=0, description="weight of bad completions")


def apo_unpaired(spec: ApoUnpairedSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Anchored, without pairs: w (1 - sigma(r)) for good, w sigma(r) for bad completions, r = beta log
    pi/ref.

    Metrics: rewards/chosen, rewards/rejected.
    """
    ratio_B, good_B, bad_B, good, bad = labelled(outputs, batch)
    reward_B = spec.beta * ratio_B
    total = (
        spec.desirable_weight * (1 - reward_B[good_B].sigmoid()).sum()
        + spec.undesirable_weight * reward_B[bad_B].sigmoid().sum()
    )
    seen_B = reward_B.detach()
    metrics = {
        "rewards/chosen": (seen_B[good_B].sum(), good),
        "rewards/rejected": (seen_B[bad_B].sum(), bad),
    }
    return Loss(total, good + bad, metrics)


ENTRIES = {
    "kto": Objective(
        KtoSpec,
        kto,
        source="Ethayarajh et al. 2024 (2402.01306), equations 6 to 8",
        ROWS="unpaired",
        ROLES=REFERENCE,
        WHOLE_STEP=True,
        KL=True,
    ),
    "bco": Objective(
        BcoSpec,
        bco,
        source="Jung et al. 2024 (2404.04656), equations 9 and 10",
        ROWS="unpaired",
        ROLES=REFERENCE,
        WHOLE_STEP=True,
    ),
    "apo_unpaired": Objective(
        ApoUnpairedSpec,
        apo_unpaired,
        source="D'Oosterlinck et al. 2024 (2408.06266), equation 7, its two terms on separate rows",
        ROWS="unpaired",
        ROLES=REFERENCE,
    ),
}
