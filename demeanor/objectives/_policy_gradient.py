"""What objectives on the policy's own completions share: advantages, ratios, KL estimators, normalisers.

In: one value for each trained token (`_C`) or completion (`_B`). Out: columns, or sums with their counts.
Columns hold only tokens that the policy wrote and that are trained: a prompt, a tool's answer or a forced
closing has no place in them. A sum over columns is therefore masked before it is aggregated.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from demeanor.core import registry
from demeanor.model.tensors import Outputs, TokenBatch, branch_lengths, branch_sums
from demeanor.objectives import Advantages, Samples

Kl = Literal["reward", "k1", "k2_sequence", "k2", "k3", "rho_k3"]
Normaliser = Literal["dapo", "grpo", "dr_grpo", "bnpo"]
Metrics = dict[str, tuple[Tensor, Tensor]]
SMALL_STD = 1e-4  # added to a standard deviation, as in TRL
EXPONENT = (
    20.0  # log-ratios (nats) above it count as it: a long completion's would overflow, and 0 x inf is nan
)


class GroupSpec(registry.Spec):
    """Settings that all objectives with group-centred advantages have."""

    std: Literal["none", "group", "batch"] = Field(
        "none",
        description="divide advantages by the rewards' standard deviation (+ 1e-4) of a group or of all",
    )
    kl_coef: float = Field(0.0, ge=0, description="coefficient of the KL to the reference; 0: no reference")
    kl: Kl = Field(
        "reward",
        description="where the KL enters: in the reward (exact), or as a loss: k2_sequence (exact), "
        "k2, rho_k3 and k3 (approximate), k1 (no gradient in expectation)",
    )


class ClippedSpec(GroupSpec):
    """Settings of group objectives with a clipped ratio per token."""

    clip_low: float = Field(0.2, ge=0, lt=1, description="ratios below 1 - this do not fall further")
    clip_high: float = Field(0.28, ge=0, description="ratios above 1 + this do not rise further")


# ---- advantages ----


def _group_means(value_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of each group and its size."""
    size_N = torch.bincount(group_B).to(value_B.dtype)
    sum_N = value_B.new_zeros(len(size_N)).index_add(0, group_B, value_B)
    return sum_N / size_N.clamp_min(1), size_N


def flat_groups(value_B: Tensor, group_B: Tensor) -> Tensor:
    """Which groups have values that are all equal, bit for bit; a group of one is among them."""
    number = int(group_B.max()) + 1 if len(group_B) else 0
    least_N = value_B.new_full((number,), torch.inf).scatter_reduce(0, group_B, value_B, "amin")
    most_N = value_B.new_full((number,), -torch.inf).scatter_reduce(0, group_B, value_B, "amax")
    return least_N >= most_N


def centred(value_B: Tensor, group_B: Tensor) -> Tensor:
    """Value minus the mean of its group; exactly 0 in a group of equal values, or of one."""
    mean_N, _ = _group_means(value_B, group_B)
    return (value_B - mean_N[group_B]).masked_fill(flat_groups(value_B, group_B)[group_B], 0.0)


def leave_one_out(value_B: Tensor, group_B: Tensor) -> Tensor:
    """Value minus the mean of the others of its group: n/(n-1) x centred; 0 in a group of one.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (2402.14740), section 2.
    """
    _, size_N = _group_means(value_B, group_B)
    return centred(value_B, group_B) * (size_N / (size_N - 1).clamp_min(1))[group_B]


def scaled(advantage_B: Tensor, samples: Samples, reward_B: Tensor, std: str) -> Tensor:
    """Advantages over the unbiased standard deviation of rewards, of their group or of all."""
    if std == "none":
        return advantage_B
    if std == "batch":
        deviation = reward_B.std() if len(reward_B) > 1 else reward_B.new_zeros(())
        return advantage_B / (deviation + SMALL_STD)
    squares_N, size_N = _group_means(centred(reward_B, samples.group_B).square(), samples.group_B)
    deviation_N = (squares_N * size_N / (size_N - 1).clamp_min(1)).sqrt()
    return advantage_B / (deviation_N[samples.group_B] + SMALL_STD)


def log_ratio_to_reference(samples: Samples) -> Tensor | None:
    """log pi - log ref of each token that was drawn (nats): the estimator k1; None without a reference."""
    if samples.reference_C is None:
        assert samples.beta == 0.0, "a KL in the reward needs the reference's log-probabilities"
        return None
    return samples.sampled_C - samples.reference_C.to(samples.sampled_C.dtype)


def branch_sum(value_C: Tensor, samples: Samples) -> Tensor:
    """Sum of each completion's tokens."""
    return value_C.new_zeros(len(samples.reward_B)).index_add(0, samples.branch_C, value_C)


def penalised(samples: Samples) -> Tensor:
    """Reward of each completion minus beta x k1 of its whole sequence; its gradient is that of J - beta KL."""
    k1_C = log_ratio_to_reference(samples)
    if k1_C is None or samples.beta == 0.0:
        return samples.reward_B
    return samples.reward_B - samples.beta * branch_sum(k1_C, samples).to(samples.reward_B.dtype)


def sample_metrics(samples: Samples) -> Metrics:
    """frac_reward_zero_std (of groups of two or more: share with equal rewards), kl (nats a completion, k1)."""
    reward_B = samples.reward_B
    several_N = torch.bincount(samples.group_B) > 1
    flat_N = flat_groups(reward_B, samples.group_B) & several_N
    found = {"frac_reward_zero_std": (flat_N.sum().to(reward_B.dtype), several_N.sum().to(reward_B.dtype))}
    k1_C = log_ratio_to_reference(samples)
    if k1_C is not None:
        found["kl"] = (k1_C.sum(), k1_C.new_tensor(float(len(reward_B))))
    return found


def group_advantages(spec: GroupSpec, samples: Samples) -> Advantages:
    """Reward (less the KL, if it is in the reward) minus the group's mean, the same for all its tokens."""
    reward_B = penalised(samples)
    advantage_B = scaled(centred(reward_B, samples.group_B), samples, reward_B, spec.std)
    return Advantages(advantage_B[samples.branch_C], metrics=sample_metrics(samples))


def generalised_advantages(
    reward_C: Tensor, value_C: Tensor, branch_C: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """GAE over the trained tokens of each completion: A_t = d_t + gamma lambda A_t+1, d_t = r_t + gamma V_t+1 - V_t.

    t+1 is the next *trained* token: across a tool's answer the value and the sum are carried, neither
    discounted nor cut, because nothing there was an action of the policy. After the last, both are 0.
    Source: Schulman et al. 2016 (1506.02438), equation 16.
    """
    lengths_B = torch.bincount(branch_C)
    longest = int(lengths_B.max()) if len(branch_C) else 0
    starts_B = lengths_B.cumsum(0) - lengths_B
    place_C = torch.arange(len(branch_C), device=branch_C.device) - starts_B[branch_C]
    table = reward_C.new_zeros(2, longest + 1, len(lengths_B))
    table[0, place_C, branch_C], table[1, place_C, branch_C] = reward_C, value_C.to(reward_C.dtype)
    rewards, values = table
    advantages = torch.zeros_like(rewards)
    for t in reversed(range(longest)):  # places after a completion's last token hold zeros and stay zero
        delta = rewards[t] + gamma * values[t + 1] - values[t]
        advantages[t] = delta + gamma * gae_lambda * advantages[t + 1]
    return advantages[place_C, branch_C]


def whitened(value_C: Tensor) -> Tensor:
    """Mean 0 and variance 1 over all columns given, which are trained tokens only; once an iteration."""
    if len(value_C) < 2:
        return torch.zeros_like(value_C)
    return (value_C - value_C.mean()) * (value_C.var(correction=0) + 1e-8).rsqrt()


# ---- the loss ----


class Columns(NamedTuple):
    """What every loss reads: log pi with gradient, log pi / pi_sampler, and advantages, per token."""

    logprobs_C: Tensor
    log_ratio_C: Tensor
    advantage_C: Tensor


def columns(outputs: Outputs, batch: TokenBatch) -> Columns:
    """Log-probabilities, log-ratios to the sampler (0 before the first step) and advantages of a batch."""
    assert outputs.logprobs_C is not None
    assert batch.sampled_C is not None
    assert batch.advantage_C is not None
    logprobs_C = outputs.logprobs_C
    log_ratio_C = logprobs_C - batch.sampled_C.to(logprobs_C.dtype)
    return Columns(logprobs_C, log_ratio_C, batch.advantage_C.to(logprobs_C.dtype))


def ratios(log_ratio: Tensor) -> Tensor:
    """Ratios of tokens or completions, held below exp(20), where they have no gradient."""
    return log_ratio.clamp_max(EXPONENT).exp()


def branch_means(value_C: Tensor, batch: TokenBatch) -> Tensor:
    """Mean over the trained tokens of each completion; 0 for one without any."""
    return branch_sums(value_C, batch) / branch_lengths(batch).clamp_min(1)


class Clipped(NamedTuple):
    """A clipped surrogate, per token or completion, with the shares that are clipped."""

    loss: Tensor
    metrics: Metrics


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, delta: float | None = None) -> Clipped:
    """-min(rho A, clip(rho, 1-low, 1+high) A): no gradient exactly if A>0, rho>1+high or A<0, rho<1-low.

    `delta` also bounds rho where A < 0. Metrics clip_ratio/{low,high,region}_mean: the shares without
    gradient. Source: Schulman et al. 2017 (1707.06347), equation 7.
    """
    free = ratio if delta is None else ratio.clamp_max(delta)
    loss = -torch.minimum(free * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    seen, count = ratio.detach(), loss.new_tensor(float(loss.numel()))
    low_share = ((seen < 1 - low) & (advantage < 0)).to(loss.dtype).sum()
    high_share = ((seen > 1 + high) & (advantage > 0)).to(loss.dtype).sum()
    shares = {"low": low_share, "high": high_share, "region": low_share + high_share}
    return Clipped(loss, {f"clip_ratio/{name}_mean": (share, count) for name, share in shares.items()})


def kl_estimates(kind: Kl, logprobs_C: Tensor, batch: TokenBatch, ratio_C: Tensor) -> Tensor:
    """An estimator of KL(pi||ref) as a loss, in nats; a completion's sum over tokens estimates its KL.

    With l = log pi - log ref: k1 l, k2 l^2/2, k3 exp(-l) - 1 + l, rho_k3 rho x k3; k2_sequence (sum l)^2/2
    of the completion, spread evenly over its tokens. Expected gradients: docs/online-objectives.md.
    """
    assert batch.reference_C is not None, "a KL in the loss needs the reference's log-probabilities"
    l_C = logprobs_C - batch.reference_C.to(logprobs_C.dtype)
    if kind == "k1":
        return l_C
    if kind == "k2":
        return 0.5 * l_C.square()
    if kind == "k2_sequence":
        each_B = 0.5 * branch_sums(l_C, batch).square() / branch_lengths(batch).clamp_min(1)
        return each_B[batch.branch_C]
    k3_C = torch.expm1((-l_C).clamp_max(EXPONENT)) + l_C
    return ratio_C * k3_C if kind == "rho_k3" else k3_C


def with_kl(
    each_C: Tensor, spec: GroupSpec, logprobs_C: Tensor, batch: TokenBatch, ratio_C: Tensor
) -> tuple[Tensor, Metrics]:
    """Losses of tokens plus kl_coef x the estimator, if the KL is in the loss. Metrics: kl_loss (a token)."""
    if not kl_in_loss(spec):
        return each_C, {}
    kl_C = kl_estimates(spec.kl, logprobs_C, batch, ratio_C)
    return each_C + spec.kl_coef * kl_C, {"kl_loss": (kl_C.detach().sum(), kl_C.new_tensor(float(len(kl_C))))}


def kl_in_loss(spec: GroupSpec) -> bool:
    """Whether these settings put a KL into the loss."""
    return spec.kl != "reward" and spec.kl_coef > 0


def divisor(normaliser: Normaliser, lengths_B: Tensor, length: int | None = None) -> float:
    """What a sum of losses is divided by; completions without a trained token do not count.

    dapo and bnpo: tokens; grpo: completions; dr_grpo: completions x `length`.
    """
    completions = float((lengths_B > 0).sum())
    if normaliser == "grpo":
        return completions
    if normaliser == "dr_grpo":
        assert length is not None, "dr_grpo: wanted a length; Online.resolved gives it"
        return completions * length
    return float(lengths_B.sum())


def aggregated(
    each_C: Tensor, batch: TokenBatch, normaliser: Normaliser, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Sum and count of losses per token; grpo weighs each token by 1 / its completion's length."""
    lengths_B = branch_lengths(batch)
    total = branch_means(each_C, batch).sum() if normaliser == "grpo" else each_C.sum()
    return total, total.new_tensor(divisor(normaliser, lengths_B, length))


def drift(found: Columns, outputs: Outputs) -> Metrics:
    """approx_kl (mean rho - 1 - log rho: KL from the sampler, nats a token), entropy if it was computed."""
    log_ratio_C = found.log_ratio_C.detach()
    count = log_ratio_C.new_tensor(float(len(log_ratio_C)))
    metrics = {"approx_kl": ((ratios(log_ratio_C) - 1 - log_ratio_C).sum(), count)}
    if outputs.entropy_C is not None:
        metrics["entropy"] = (outputs.entropy_C.detach().sum(), count)
    return metrics


# ---- declarations that these objectives share ----


def tokens(spec: Any, lengths_B: Tensor) -> float:
    """Online.count of a mean over trained tokens."""
    return divisor("dapo", lengths_B)


def completions(spec: Any, lengths_B: Tensor) -> float:
    """Online.count of a mean over completions."""
    return divisor("grpo", lengths_B)


def reads_reference(spec: Any) -> bool:
    """Online.reference: with a KL, wherever it is."""
    return bool(spec.kl_coef > 0)


def kl_coef(spec: Any) -> float:
    """Online.beta where the KL is always in the reward."""
    return float(spec.kl_coef)


def reward_beta(spec: GroupSpec) -> float:
    """Online.beta: the coefficient of the KL if it is in the reward."""
    return spec.kl_coef if spec.kl == "reward" else 0.0


def skips_flat(spec: GroupSpec) -> bool:
    """Online.skips: exact unless a KL is in the loss, which pulls completions without an advantage too."""
    return not kl_in_loss(spec)


def always(spec: Any) -> bool:
    """Online.skips of a loss that is 0, with its gradient, wherever the advantage is."""
    return True


def never(spec: Any) -> bool:
    """Online.skips of a loss that learns from every completion, as a critic does."""
    return False
