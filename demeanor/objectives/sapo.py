"""SAPO: a smooth gate of each token's ratio in place of the clip, steeper for negative advantages.

In: log-probabilities. Out: a sum over completions. Page: docs/online-objectives.md.

Deviations:
1. Advantages are not divided by a standard deviation; `std: group` is the paper.
"""

from __future__ import annotations

import torch
from pydantic import Field

from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import REFERENCE, Objective, Online
from demeanor.objectives._policy_gradient import (
    GroupSpec,
    aggregated,
    columns,
    completions,
    drift,
    group_advantages,
    ratios,
    reads_reference,
    reward_beta,
    skips_flat,
    with_kl,
)


class SapoSpec(GroupSpec):
    """Settings of sapo."""

    tau_positive: float = Field(
        1.0, gt=0, description="steepness of the gate where the advantage is positive"
    )
    tau_negative: float = Field(1.05, gt=0, description="the same where it is not")


def sapo(spec: SapoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """-(4/tau) sigma(tau (rho - 1)) A per token, mean over a completion, rho = pi/pi_sampler.

    Its slope at rho = 1 is that of rho A. Metrics: kl_loss, approx_kl, entropy.
    """
    found = columns(outputs, batch)
    ratio_C = ratios(found.log_ratio_C)
    positive_C = torch.full_like(ratio_C, spec.tau_positive)
    tau_C = positive_C.masked_fill(found.advantage_C <= 0, spec.tau_negative)
    each_C = -4 / tau_C * (tau_C * (ratio_C - 1)).sigmoid() * found.advantage_C
    each_C, kl = with_kl(each_C, spec, found.logprobs_C, batch, ratio_C)
    total, count = aggregated(each_C, batch, "grpo")
    return Loss(total, count, kl | drift(found, outputs))


ENTRIES = {
    "sapo": Objective(
        SapoSpec,
        sapo,
        source="Gao et al. 2025 (2511.20347), the SAPO objective of section 3",
        ROWS="prompts",
        ROLES=REFERENCE,
        ONLINE=Online(
            advantages=group_advantages,
            count=completions,
            reference=reads_reference,
            skips=skips_flat,
            beta=reward_beta,
        ),
    )
}
