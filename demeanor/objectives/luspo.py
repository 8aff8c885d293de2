"""LUSPO: GSPO with each completion's loss times its length, so that long answers are not worth less.

In: log-probabilities. Out: a sum over completions. Page: docs/online-objectives.md.

Deviations:
1. Advantages are not divided by a standard deviation; `std: group` is the paper.
"""

from __future__ import annotations

from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_lengths
from demeanor.objectives import REFERENCE, Objective, Online
from demeanor.objectives._policy_gradient import (
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
from demeanor.objectives.gspo import GspoSpec


def luspo(spec: GspoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """-|y| min(s A, clip(s, 1-clip_low, 1+clip_high) A) per completion, s = (pi(y)/pi_sampler(y))^(1/|y|).

    Metrics: clip_ratio/* (shares of completions), kl_loss, approx_kl, entropy.
    """
    found = columns(outputs, batch)
    ratio_B = ratios(branch_means(found.log_ratio_C, batch))
    surrogate = clipped(ratio_B, branch_means(found.advantage_C, batch), spec.clip_low, spec.clip_high)
    each_C = surrogate.loss[batch.branch_C]
    each_C, kl = with_kl(each_C, spec, found.logprobs_C, batch, ratio_B[batch.branch_C])
    total = each_C.sum()
    count = total.new_tensor(completions(spec, branch_lengths(batch)))
    return Loss(total, count, surrogate.metrics | kl | drift(found, outputs))


ENTRIES = {
    "luspo": Objective(
        GspoSpec,
        luspo,
        source="Liu et al. 2026 (2602.05261), the LUSPO objective of section 3; "
        "ratio and clips: Zheng et al. 2025 (2507.18071)",
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
