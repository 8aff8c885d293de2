"""C2: DPO is RLHF on the same comparisons, what finite data costs, and where the relatives of DPO come to rest.

Ten prompts of eight answers; comparisons are drawn with Bradley-Terry probabilities. The loss gap is J* - J of the policy that a loss
finds. DPO on N comparisons misses J* by about c / N once every pair was seen both ways; below that it takes one-sided pairs for certain.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from tests.experiments.findings import Finding, failed, interval
from tests.experiments.tabular import counted, kl, minimise, pairs, policy_loss, regularised, tilt
from tests.experiments.test_c01_frontier import population_dpo, problem

dpo, ipo, robust, reward = (
    registry.entry("demeanor.objectives", kind) for kind in ("dpo", "ipo", "robust", "reward")
)
PROMPTS, ARMS, BETA = 10, 8, 0.2


class World(NamedTuple):
    """Log-probabilities of the reference and rewards, a row a prompt."""

    reference_XA: Tensor
    reward_XA: Tensor


class Compared(NamedTuple):
    """Distinct ordered comparisons of arms (numbered over all prompts) and how often each occurred."""

    chosen_P: Tensor
    rejected_P: Tensor
    count_P: Tensor


def world() -> World:
    drawn = torch.Generator().manual_seed(0)
    reference = torch.randn(PROMPTS, ARMS, generator=drawn, dtype=torch.float64).mul(0.5).log_softmax(1)
    return World(reference, 0.5 * torch.randn(PROMPTS, ARMS, generator=drawn, dtype=torch.float64))


def compare(rewards_XA: Tensor, n: int, seed: int) -> Compared:
    """Draw n comparisons of two different answers to one prompt; the better one wins with probability sigma(r - r')."""
    drawn = torch.Generator().manual_seed(seed)
    prompt = torch.randint(PROMPTS, (n,), generator=drawn)
    first = torch.randint(ARMS, (n,), generator=drawn)
    second = (first + torch.randint(1, ARMS, (n,), generator=drawn)) % ARMS
    gap = rewards_XA[prompt, first] - rewards_XA[prompt, second]
    wins = torch.rand(n, generator=drawn, dtype=torch.float64) < gap.sigmoid()
    winner, loser = torch.where(wins, first, second), torch.where(wins, second, first)
    code, count = torch.unique((prompt * ARMS + winner) * ARMS + loser, return_counts=True)
    chosen, rejected = code // ARMS, (code // (ARMS * ARMS)) * ARMS + code % ARMS
    return Compared(chosen, rejected, count)


def policy_of(objective: Any, spec: Any, seen: Compared, reference_XA: Tensor) -> Tensor:
    """The policy at the minimum of a preference loss on these comparisons."""

    def loss(logits_XA: Tensor) -> Tensor:
        policy = logits_XA.log_softmax(1).reshape(-1)
        return (
            counted(policy_loss(objective, spec, policy, reference_XA.reshape(-1)), *seen)
            / seen.count_P.sum()
        )

    return minimise(loss, reference_XA).log_softmax(1)


def rlhf(seen: Compared, reference_XA: Tensor) -> Tensor:
    """The reward model of maximum likelihood, then the exact optimum of its reward minus beta KL."""

    def loss(rewards_XA: Tensor) -> Tensor:
        def of(batch: TokenBatch) -> Loss:
            return reward.loss(
                reward.Spec(), Outputs(rewards_B=rewards_XA.reshape(-1)[batch.targets_C]), batch
            )

        return counted(of, *seen) / seen.count_P.sum()

    return tilt(reference_XA, minimise(loss, torch.zeros_like(reference_XA)), BETA)


def gap(policy_XA: Tensor, at: World) -> float:
    """J* - J, a mean over prompts."""
    best = tilt(at.reference_XA, at.reward_XA, BETA)
    j_best, j = (regularised(p, at.reference_XA, at.reward_XA, BETA) for p in (best, policy_XA))
    return (j_best - j) / PROMPTS


@cache
def findings() -> tuple[Finding, ...]:
    at, plain = world(), dpo.Spec(beta=BETA)
    many = compare(at.reward_XA, 16_000, 0)
    fitted = {n: policy_of(dpo, plain, compare(at.reward_XA, n, 0), at.reference_XA) for n in (4_000, 16_000)}
    difference = float((fitted[16_000].exp() - rlhf(many, at.reference_XA).exp()).abs().max())
    reference, rewards = problem()
    limit = kl(tilt(reference, rewards, BETA), population_dpo(reference, rewards, BETA))
    ratio = 16_000 * gap(fitted[16_000], at) / (4_000 * gap(fitted[4_000], at))
    return (
        Finding(
            "DPO against reward model + exact RL on the same 16,000 comparisons: largest difference of a probability",
            "0",
            difference,
            difference < 1e-6,
            n=16_000,
        ),
        Finding("KL(pi* || DPO) with every pair compared infinitely often (nats)", "0", limit, limit < 1e-8),
        Finding(
            "gap J* - J falls as c / N: N x gap at 16,000 over 4,000",
            "0.5 to 2",
            ratio,
            0.5 <= ratio <= 2,
            n=16_000,
        ),
        *few_comparisons(at),
        *fixed_points(),
    )


def few_comparisons(at: World, n: int = 200, seeds: int = 8) -> tuple[Finding, ...]:
    """Twenty comparisons a prompt on 28 pairs: most were seen once, and DPO takes them for certain."""
    losses = {
        "dpo": (dpo, dpo.Spec(beta=BETA)),
        "cdpo": (dpo, dpo.Spec(beta=BETA, label_smoothing=0.1)),
        "ipo": (ipo, ipo.Spec(beta=0.5, normalise="sum")),
    }
    gaps: dict[str, list[float]] = {name: [] for name in losses}
    moved: dict[str, list[float]] = {name: [] for name in losses}
    for seed in range(seeds):
        seen = compare(at.reward_XA, n, seed)
        for name, (objective, spec) in losses.items():
            policy = policy_of(objective, spec, seen, at.reference_XA)
            gaps[name].append(gap(policy, at))
            moved[name].append(kl(policy, at.reference_XA) / PROMPTS)
    untrained = gap(at.reference_XA, at)
    best_kl = kl(tilt(at.reference_XA, at.reward_XA, BETA), at.reference_XA) / PROMPTS
    worse = interval([g - untrained for g in gaps["dpo"]])
    found = [
        Finding(
            f"gap of DPO minus gap of its reference at {n} comparisons",
            "> 0: worse than no training",
            *_numbers(worse, worse[1] > 0),
            n=n,
            seeds=seeds,
        )
    ]
    for name, label in (("cdpo", "cDPO (e = 0.1)"), ("ipo", "IPO (tau = 0.5)")):
        less = interval([a - b for a, b in zip(gaps[name], gaps["dpo"])])
        text = f"gap of {label} minus gap of DPO at {n} comparisons"
        found.append(Finding(text, "< 0", *_numbers(less, less[2] < 0), n=n, seeds=seeds))
    for name, label, wanted in (("dpo", "DPO", "above"), ("ipo", "IPO (tau = 0.5)", "below")):
        far = interval([k / best_kl for k in moved[name]])
        holds = far[1] > 1 if wanted == "above" else far[2] < 1
        text = f"KL of {label} over KL of pi* at {n} comparisons"
        found.append(Finding(text, f"{wanted} 1", *_numbers(far, holds), n=n, seeds=seeds))
    return tuple(found)


def _numbers(found: tuple[float, float, float], holds: bool) -> tuple[float, bool, float, float]:
    return found[0], holds, found[1], found[2]


def fixed_points() -> tuple[Finding, ...]:
    """Where one pair comes to rest, and the bias of rDPO over flips."""

    def rest(objective: Any, spec: Any) -> float:
        def loss(logits_A: Tensor) -> Tensor:
            return policy_loss(objective, spec, logits_A.log_softmax(0), reference)(pairs([0], [1])).total

        reference = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
        found = minimise(loss, reference).log_softmax(0) - reference
        return float(found[0] - found[1])

    cdpo = 0.5 * rest(dpo, dpo.Spec(beta=0.5, label_smoothing=0.1))
    wanted = math.log(0.9 / 0.1)
    ipo_h = rest(ipo, ipo.Spec(beta=0.5, normalise="sum"))
    bias = flip_bias(0.2)
    return (
        Finding(
            "cDPO (e = 0.1) rests at beta h",
            f"logit(0.9) = {wanted:.6f}",
            cdpo,
            abs(cdpo - wanted) < 1e-6,
            places=6,
        ),
        Finding("IPO (tau = 0.5) rests at h", "1 / (2 tau) = 1", ipo_h, abs(ipo_h - 1) < 1e-6, places=6),
        Finding(
            "rDPO over flips minus DPO on clean labels, largest of loss and gradient", "0", bias, bias < 1e-12
        ),
    )


def flip_bias(e: float) -> float:
    """(1 - e) x rDPO of a pair + e x rDPO of the flipped pair must be DPO of the pair: value and gradient."""
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    worst = 0.0
    for seed in range(5):
        drawn = torch.Generator().manual_seed(seed)
        logits = torch.randn(3, generator=drawn, dtype=torch.float64, requires_grad=True)
        clean, noisy = dpo.Spec(beta=0.5), robust.Spec(beta=0.5, label_smoothing=e)
        policy = logits.log_softmax(0)
        right = policy_loss(dpo, clean, policy, reference)(pairs([0], [1])).total
        of_flips = (1 - e) * policy_loss(robust, noisy, policy, reference)(pairs([0], [1])).total
        of_flips = of_flips + e * policy_loss(robust, noisy, policy, reference)(pairs([1], [0])).total
        (slope,) = torch.autograd.grad(right - of_flips, logits)
        worst = max(worst, abs(float((right - of_flips).detach())), float(slope.abs().max()))
    return worst


def test_dpo_is_reward_modelling_and_exact_rl_and_its_relatives_rest_where_theory_says() -> None:
    assert failed(findings()) == []


def test_the_likelihood_of_a_comparison_is_what_the_losses_score() -> None:
    """A slow twin: the counted sum against the comparisons written one by one."""
    at, seen = world(), compare(world().reward_XA, 40, 3)
    policy = at.reward_XA.log_softmax(1).reshape(-1)
    reference = at.reference_XA.reshape(-1)
    slow = 0.0
    for chosen, rejected, count in zip(*(column.tolist() for column in seen)):
        h = (policy[chosen] - reference[chosen]) - (policy[rejected] - reference[rejected])
        slow -= count * float(logsigmoid(BETA * h))
    fast = counted(policy_loss(dpo, dpo.Spec(beta=BETA), policy, reference), *seen)
    assert int(seen.count_P.sum()) == 40
    assert abs(slow - float(fast)) < 1e-9
