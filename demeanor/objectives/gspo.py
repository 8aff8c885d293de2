"""GSPO: one ratio for a whole completion, the geometric mean of its tokens' ratios, clipped.

In: log-probabilities. Out: a sum over completions. Page: docs/online-objectives.md.

Deviations:
1. Advantages are not divided by a standard deviation; `std: group` is the paper.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import REFERENCE, Objective, Online
from demeanor.objectives._policy_gradient import (
    GroupSpec,
    aggregated,
    branch_means,
    clipped,
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


class GspoSpec(GroupSpec):
    """Settings of gspo."""

    clip_low: float = Field(3e-4, ge=0, lt=1, description="ratios below 1 - this do not fall further")
    clip_high: float = Field(4e-4, ge=0, description="ratios above 1 + this do not rise further")


def gspo(spec: GspoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """-min(s A, clip(s, 1-clip_low, 1+clip_high) A) per completion, s = (pi(y)/pi_sampler(y))^(1/|y|).

    Metrics: clip_ratio/* (shares of completions), kl_loss, approx_kl, entropy.
    """
    found = columns(outputs, batch)
    ratio_B = ratios(branch_means(found.log_ratio_C, batch))
    surrogate = clipped(ratio_B, branch_means(found.advantage_C, batch), spec.clip_low, spec.clip_high)
    each_C = surrogate.loss[batch.branch_C]
    each_C, kl = with_kl(each_C, spec, found.logprobs_C, batch, ratio_B[batch.branch_C])
    total, count = aggregated(each_C, batch, "grpo")
    return Loss(total, count, surrogate.metrics | kl | drift(found, outputs))


ENTRIES = {
    "gspo": Objective(
        GspoSpec,
        gspo,
        source="Zheng et al. 2025 (2507.18071), equations 5 and 7; clips: its section 5.1",
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
