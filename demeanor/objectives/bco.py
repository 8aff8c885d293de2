"""Binary classifier optimisation: is a completion good, read off its log-ratio against a shift.

Source: Jung et al. 2024 (2404.04656), equations 9 and 10.
Page: docs/objectives/bco.md

Deviations: 1. The shift delta is the mean of good and bad rewards of the optimiser step, not a running mean over steps: no state
outlives a step. 2. No importance weights from an embedding model.
"""

from __future__ import annotations

from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_sums

ROWS = "unpaired"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True
WHOLE_STEP = True


class Spec(registry.Spec):
    """Settings of bco."""

    beta: float = Field(0.1, gt=0, description="scale of the log-ratios")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over completions of -log sigma(+-(r - delta)), r = beta log pi/ref, delta half the sum of mean good and mean bad r.

    Metrics: rewards/chosen, rewards/rejected, rewards/accuracies (on the right side of delta), delta.
    """
    assert outputs.logprobs_C is not None
    assert batch.reference_C is not None
    assert batch.label_B is not None
    reward_B = spec.beta * branch_sums(
        outputs.logprobs_C - batch.reference_C.to(outputs.logprobs_C.dtype), batch
    )
    good_B, bad_B = batch.label_B == 1, batch.label_B == 0
    seen_B = reward_B.detach()
    good, bad = good_B.sum().to(reward_B.dtype), bad_B.sum().to(reward_B.dtype)
    delta = 0.5 * (seen_B[good_B].sum() / good.clamp_min(1) + seen_B[bad_B].sum() / bad.clamp_min(1))
    total = -logsigmoid(reward_B[good_B] - delta).sum() - logsigmoid(delta - reward_B[bad_B]).sum()
    right = ((seen_B > delta) & good_B).sum() + ((seen_B < delta) & bad_B).sum()
    count = good + bad
    return Loss(
        total,
        count,
        {
            "rewards/chosen": (seen_B[good_B].sum(), good),
            "rewards/rejected": (seen_B[bad_B].sum(), bad),
            "rewards/accuracies": (right.to(count.dtype), count),
            "delta": (delta, delta.new_ones(())),
        },
    )
