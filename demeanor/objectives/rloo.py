"""RLOO: REINFORCE with the mean reward of the group's other completions as baseline, KL in the reward.

In: log-probabilities. Out: a sum over completions. Page: docs/online-objectives.md.

Deviations:
1. The ratio of whole completions is clipped as in PPO, as TRL does. At the first step of an iteration the
ratio is 1 and the gradient is the paper's.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, branch_lengths, branch_sums
from demeanor.objectives import REFERENCE, Advantages, Objective, Online, Samples
from demeanor.objectives._policy_gradient import (
    always,
    branch_means,
    clipped,
    columns,
    completions,
    drift,
    kl_coef,
    leave_one_out,
    penalised,
    ratios,
    reads_reference,
    sample_metrics,
)


class RlooSpec(registry.Spec):
    """Settings of rloo."""

    kl_coef: float = Field(
        0.05, ge=0, description="coefficient of the KL in the reward (beta); 0: no reference"
    )
    clip_low: float = Field(0.2, ge=0, lt=1, description="ratios below 1 - this do not fall further")
    clip_high: float = Field(0.2, ge=0, description="ratios above 1 + this do not rise further")


def rloo(spec: RlooSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """-min(rho A, clip(rho) A) of whole completions: rho = pi(y)/pi_sampler(y), the product over its tokens.

    Metrics: clip_ratio/* (shares of completions), approx_kl, entropy.
    """
    found = columns(outputs, batch)
    ratio_B = ratios(branch_sums(found.log_ratio_C, batch))
    surrogate = clipped(ratio_B, branch_means(found.advantage_C, batch), spec.clip_low, spec.clip_high)
    total = surrogate.loss.sum()
    count = total.new_tensor(completions(spec, branch_lengths(batch)))
    return Loss(total, count, surrogate.metrics | drift(found, outputs))


def rloo_advantages(spec: RlooSpec, samples: Samples) -> Advantages:
    """Reward less beta x k1 of the sequence, minus the mean of the group's others; 0 for one without others."""
    advantage_B = leave_one_out(penalised(samples), samples.group_B)
    return Advantages(advantage_B[samples.branch_C], metrics=sample_metrics(samples))


ENTRIES = {
    "rloo": Objective(
        RlooSpec,
        rloo,
        source="Ahmadian et al. 2024 (2402.14740), the RLOO estimator of section 2",
        ROWS="prompts",
        ROLES=REFERENCE,
        ONLINE=Online(
            advantages=rloo_advantages,
            count=completions,
            reference=reads_reference,
            skips=always,
            beta=kl_coef,
        ),
    )
}
