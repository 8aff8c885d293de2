"""CISPO: policy gradient with a capped ratio as a weight, so no token ever loses its gradient.

In: log-probabilities. Out: a sum over trained tokens. Page: docs/online-objectives.md.

Deviations:
1. The cap is one number (ScaleRL); the paper writes 1 + epsilon_high and a lower bound that it leaves open.
2. Advantages are not divided by a standard deviation; `std: group` is the paper.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import REFERENCE, Objective, Online
from demeanor.objectives._policy_gradient import (
    GroupSpec,
    aggregated,
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


class CispoSpec(GroupSpec):
    """Settings of cispo."""

    cap: float = Field(5.0, gt=1, description="largest weight of a token")


def cispo(spec: CispoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """-min(rho, cap) A log pi per token, the weight without gradient, rho = pi/pi_sampler.

    Metrics: cispo_clip_ratio (share of tokens with A > 0 and rho > cap), kl_loss, approx_kl, entropy.
    """
    found = columns(outputs, batch)
    ratio_C = ratios(found.log_ratio_C)
    each_C = -ratio_C.detach().clamp_max(spec.cap) * found.advantage_C * found.logprobs_C
    each_C, kl = with_kl(each_C, spec, found.logprobs_C, batch, ratio_C)
    total, count = aggregated(each_C, batch, "dapo")
    capped = ((ratio_C.detach() > spec.cap) & (found.advantage_C > 0)).to(total.dtype).sum()
    return Loss(total, count, {"cispo_clip_ratio": (capped, count)} | kl | drift(found, outputs))


ENTRIES = {
    "cispo": Objective(
        CispoSpec,
        cispo,
        source="MiniMax 2025 (2506.13585, MiniMax-M1), equations 4 and 5; cap: Khatri et al. 2025 "
        "(2510.13786, ScaleRL)",
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
