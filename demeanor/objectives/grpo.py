"""GRPO: a clipped ratio per token, rewards centred within the group, the normaliser named explicitly.

In: log-probabilities. Out: a sum over trained tokens. Page: docs/online-objectives.md.

Deviations:
1. Advantages are centred and not divided by a standard deviation (Liu et al. 2025); `std: group` is the paper.
2. The mean is over all trained tokens of the optimiser step (`dapo`); `normaliser: grpo` is the paper.
3. The upper clip is wider than the lower one (Yu et al. 2025); `clip_high: 0.2` is the paper.
4. The KL is off, and in the reward where it is on; `kl: k3` is the paper.
5. `bnpo`, TRL's name for a token mean of its local batch: here that batch is the optimiser step, which makes
it `dapo`. A mean of micro-batches would let a setting of memory change the gradient.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import REFERENCE, Objective, Online
from demeanor.objectives._policy_gradient import (
    ClippedSpec,
    Normaliser,
    aggregated,
    clipped,
    columns,
    divisor,
    drift,
    group_advantages,
    ratios,
    reads_reference,
    reward_beta,
    skips_flat,
    with_kl,
)


class GrpoSpec(ClippedSpec):
    """Settings of grpo."""

    normaliser: Normaliser = Field(
        "dapo",
        description="dapo (and bnpo): mean over the tokens of a step; grpo: mean of completions' means; "
        "dr_grpo: sum over tokens / (completions x length)",
    )
    length: PositiveInt | None = Field(
        None, description="tokens, with normaliser: dr_grpo; null: rollouts.max_tokens"
    )
    delta: float | None = Field(
        None, gt=1, description="largest ratio where the advantage is negative; null: no bound"
    )

    @model_validator(mode="after")
    def _read(self) -> Self:
        if self.length is not None and self.normaliser != "dr_grpo":
            raise ValueError(
                f"length: got {self.length} with normaliser: {self.normaliser}, which does not read it; "
                "leave it out, or write normaliser: dr_grpo"
            )
        if self.delta is not None and self.delta <= 1 + self.clip_high:
            raise ValueError(
                f"delta: got {self.delta}, wanted more than 1 + clip_high ({1 + self.clip_high})"
            )
        return self


def grpo(spec: GrpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """-min(rho A, clip(rho, 1-clip_low, 1+clip_high) A) + kl_coef KL per token, rho = pi/pi_sampler.

    Metrics: clip_ratio/*, kl_loss, approx_kl, entropy.
    """
    found = columns(outputs, batch)
    ratio_C = ratios(found.log_ratio_C)
    surrogate = clipped(ratio_C, found.advantage_C, spec.clip_low, spec.clip_high, spec.delta)
    each_C, kl = with_kl(surrogate.loss, spec, found.logprobs_C, batch, ratio_C)
    total, count = aggregated(each_C, batch, spec.normaliser, spec.length)
    return Loss(total, count, surrogate.metrics | kl | drift(found, outputs))


def count(spec: GrpoSpec, lengths_B: Tensor) -> float:
    """What the summed loss is divided by, with lengths in trained tokens."""
    return divisor(spec.normaliser, lengths_B, spec.length)


def resolved(spec: GrpoSpec, max_tokens: int) -> GrpoSpec:
    """dr_grpo divides by the longest completion that can be drawn, unless a length is given."""
    given = spec.normaliser != "dr_grpo" or spec.length is not None
    return spec if given else spec.model_copy(update={"length": max_tokens})


ENTRIES = {
    "grpo": Objective(
        GrpoSpec,
        grpo,
        source="Shao et al. 2024 (2402.03300), equation 3; dapo and clip_high: Yu et al. 2025 (2503.14476), "
        "equation 8; dr_grpo: Liu et al. 2025 (2503.20783), section 3.2; "
        "delta: Prime Intellect 2025 (2505.07291, two-sided clipping)",
        ROWS="prompts",
        ROLES=REFERENCE,
        ONLINE=Online(
            advantages=group_advantages,
            count=count,
            reference=reads_reference,
            skips=skips_flat,
            beta=reward_beta,
            resolved=resolved,
        ),
    )
}
