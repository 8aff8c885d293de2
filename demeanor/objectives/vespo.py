"""VESPO: policy gradient weighted by a smooth function of the whole completion's ratio.

In: log-probabilities. Out: a sum over trained tokens. Page: docs/online-objectives.md.

Deviations:
1. Log-ratios are held within +-20 and the weight's within [log 1e-8, 20], as in the authors' code and TRL.
2. Advantages are not divided by a standard deviation; `std: group` is the paper.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field

from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_sums
from demeanor.objectives import REFERENCE, Objective, Online
from demeanor.objectives._policy_gradient import (
    GroupSpec,
    aggregated,
    branch_means,
    columns,
    drift,
    group_advantages,
    ratios,
    reads_reference,
    reward_beta,
    skips_flat,
    tokens,
    with_kl,
)

LEAST, MOST = math.log(1e-8), 20.0


class VespoSpec(GroupSpec):
    """Settings of vespo."""

    k_positive: float = Field(2.0, ge=0, description="power of the ratio where the advantage is not negative")
    lambda_positive: float = Field(3.0, gt=0, description="decay with the ratio there")
    k_negative: float = Field(3.0, ge=0, description="power of the ratio where the advantage is negative")
    lambda_negative: float = Field(2.0, gt=0, description="decay with the ratio there")


def vespo(spec: VespoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """-phi(w) A log pi per token, w = pi(y)/pi_sampler(y), phi(w) = w^k exp(lambda (1 - w)), without gradient.

    Metrics: vespo/phi_seq_mean (mean phi of completions), kl_loss, approx_kl, entropy.
    """
    found = columns(outputs, batch)
    log_w_B = branch_sums(found.log_ratio_C.detach().clamp(-MOST, MOST), batch).clamp(LEAST, MOST)
    negative_B = branch_means(found.advantage_C, batch) < 0
    k_B = torch.full_like(log_w_B, spec.k_positive).masked_fill(negative_B, spec.k_negative)
    lambda_B = torch.full_like(log_w_B, spec.lambda_positive).masked_fill(negative_B, spec.lambda_negative)
    phi_B = (lambda_B + k_B * log_w_B - lambda_B * log_w_B.exp()).exp()
    each_C = -phi_B[batch.branch_C] * found.advantage_C * found.logprobs_C
    each_C, kl = with_kl(each_C, spec, found.logprobs_C, batch, ratios(found.log_ratio_C))
    total, count = aggregated(each_C, batch, "dapo")
    weight = {"vespo/phi_seq_mean": (phi_B.sum(), phi_B.new_tensor(float(len(phi_B))))}
    return Loss(total, count, weight | kl | drift(found, outputs))


ENTRIES = {
    "vespo": Objective(
        VespoSpec,
        vespo,
        source="Shen et al. 2026 (2602.10693), the kernel of section 3 with the Gamma weighting of its code",
        ROWS="prompts",
        ROLES=REFERENCE,
        ONLINE=Online(
            advantages=group_advantages,
            count=tokens,
            reference=reads_reference,
            skips=skips_flat,
            beta=reward_beta,
        ),
    )
}
