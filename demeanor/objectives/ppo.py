"""PPO as InstructGPT did it: KL in the reward of every token, GAE, clipped policy and value losses.

In: log-probabilities and a critic's values. Out: a sum over trained tokens. Page: docs/online-objectives.md.

Deviations:
1. gae_lambda is 1 (InstructGPT states none; Ziegler et al. 2019 use 0.95; verl and OpenRLHF default to 1).
2. Advantages are whitened once over all trained tokens of an iteration, not again in each minibatch.
3. The pretraining mix (ptx, equation 2) is a setting of the stage, since every online objective can have it.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import REFERENCE, Advantages, Objective, Online, Samples
from demeanor.objectives._policy_gradient import (
    clipped,
    columns,
    drift,
    generalised_advantages,
    kl_coef,
    log_ratio_to_reference,
    never,
    ratios,
    reads_reference,
    sample_metrics,
    tokens,
    whitened,
)


class PpoSpec(registry.Spec):
    """Settings of ppo."""

    kl_coef: float = Field(
        0.02, ge=0, description="coefficient of the KL in each token's reward (beta); 0: no reference"
    )
    kl_target: float | None = Field(
        None, gt=0, description="KL in nats a completion that kl_coef is steered to; null: kl_coef is fixed"
    )
    kl_horizon: float = Field(
        10_000, gt=0, description="completions in which the steered kl_coef changes by at most a fifth"
    )
    gamma: float = Field(1.0, ge=0, le=1, description="discount of a token's later rewards")
    gae_lambda: float = Field(
        1.0, ge=0, le=1, description="1: reward to go minus value; lower leans on the critic"
    )
    whiten: bool = Field(True, description="advantages to mean 0 and variance 1 over an iteration's tokens")
    clip_range: float = Field(
        0.2, gt=0, lt=1, description="ratios outside 1 +- this do not move further away"
    )
    value_clip: float | None = Field(
        0.2, gt=0, description="the critic moves at most this far in an iteration; null: off"
    )
    value_coef: float = Field(0.1, gt=0, description="weight of the value loss")
    value_init: Literal["reward", "zero"] = Field(
        "reward", description="where the critic starts: the reward model's weights, or a head of zeros"
    )

    @model_validator(mode="after")
    def _steerable(self) -> Self:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError(
                f"kl_target: got {self.kl_target} with kl_coef: 0, which stays 0 when it is multiplied; "
                "give kl_coef a first value, or leave kl_target out"
            )
        return self


def ppo(spec: PpoSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Per token: -min(rho A, clip(rho) A) + value_coef/2 max((V-R)^2, (V_clipped-R)^2), rho = pi/pi_sampler.

    Metrics: policy_loss, value_loss, value_clip_ratio, clip_ratio/*, approx_kl, entropy.
    """
    assert outputs.values_C is not None
    assert batch.value_C is not None
    assert batch.return_C is not None
    found = columns(outputs, batch)
    policy = clipped(ratios(found.log_ratio_C), found.advantage_C, spec.clip_range, spec.clip_range)
    value_C, before_C = outputs.values_C, batch.value_C.to(outputs.values_C.dtype)
    return_C = batch.return_C.to(value_C.dtype)
    error_C = (value_C - return_C).square()
    clips_C = torch.zeros_like(error_C)
    if spec.value_clip is not None:
        near_C = before_C + (value_C - before_C).clamp(-spec.value_clip, spec.value_clip)
        clips_C = ((near_C - return_C).square() > error_C).to(error_C.dtype)
        error_C = torch.maximum(error_C, (near_C - return_C).square())
    value_loss = 0.5 * error_C.sum().to(policy.loss.dtype)
    count = policy.loss.new_tensor(float(len(policy.loss)))
    metrics = {
        "policy_loss": (policy.loss.detach().sum(), count),
        "value_loss": (value_loss.detach(), count),
        "value_clip_ratio": (clips_C.sum().to(count.dtype), count),
    }
    total = policy.loss.sum() + spec.value_coef * value_loss
    return Loss(total, count, metrics | policy.metrics | drift(found, outputs))


def ppo_advantages(spec: PpoSpec, samples: Samples) -> Advantages:
    """GAE of rewards: -beta (log pi - log ref) at every token, the completion's reward at its last trained one.

    Returns are advantages before whitening plus values. Metrics: explained_variance (of returns by values),
    kl, frac_reward_zero_std. Source: Ziegler et al. 2019 (1909.08593), equation 2.
    """
    assert samples.value_C is not None
    reward_C = token_rewards(samples)
    value_C = samples.value_C.to(reward_C.dtype)
    advantage_C = generalised_advantages(reward_C, value_C, samples.branch_C, spec.gamma, spec.gae_lambda)
    return_C = advantage_C + value_C
    metrics = sample_metrics(samples)
    if len(return_C) > 1 and float(return_C.var()) > 0:
        share = 1 - (return_C - value_C).var() / return_C.var()
        metrics["explained_variance"] = (share, torch.ones_like(share))
    return Advantages(whitened(advantage_C) if spec.whiten else advantage_C, return_C, metrics)


def token_rewards(samples: Samples) -> Tensor:
    """Rewards of tokens: -beta x k1 at each, and the completion's own at its last trained token."""
    k1_C = log_ratio_to_reference(samples)
    reward_C = torch.zeros_like(samples.sampled_C) if k1_C is None else -samples.beta * k1_C
    last_C = torch.ones_like(samples.branch_C, dtype=torch.bool)
    last_C[:-1] = samples.branch_C[1:] != samples.branch_C[:-1]
    reward_C[last_C] += samples.reward_B.to(reward_C.dtype)[samples.branch_C[last_C]]
    return reward_C


def adapted(spec: PpoSpec, beta: float, kl: float, completions: int) -> float:
    """The next kl_coef: up if the KL (nats a completion) is above its target, by at most 20% per horizon.

    Source: Ziegler et al. 2019 (1909.08593), section 2.2.
    """
    if spec.kl_target is None:
        return beta
    error = min(max(kl / spec.kl_target - 1, -0.2), 0.2)
    return beta * (1 + error * completions / spec.kl_horizon)


def value_init(spec: PpoSpec) -> Literal["reward", "zero"]:
    """Where the critic starts."""
    return spec.value_init


ENTRIES = {
    "ppo": Objective(
        PpoSpec,
        ppo,
        source="Ouyang et al. 2022 (2203.02155), section 3.5 and appendix C.4; Schulman et al. 2017 "
        "(1707.06347), equation 7; value clipping and adaptive KL: Ziegler et al. 2019 (1909.08593)",
        ROWS="prompts",
        ROLES=REFERENCE,
        ONLINE=Online(
            advantages=ppo_advantages,
            count=tokens,
            reference=reads_reference,
            skips=never,
            groups=False,
            critic=True,
            beta=kl_coef,
            adapt=adapted,
            value_init=value_init,
        ),
    )
}
