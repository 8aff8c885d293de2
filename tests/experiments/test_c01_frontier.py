"""C1: the reward-KL frontier. No policy lies above ref exp(r / beta); along it dR/dKL = beta and J* = beta log Z.

The policies are minima of the DPO loss in its population limit (every pair, labelled with its Bradley-Terry probability), which is the
same optimum. The KL is read as `demeanor frontier` reads it: from log-ratios of drawn answers.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from demeanor.core import registry
from demeanor.evaluation.frontier import KlFromParent, divergence
from tests.experiments.findings import Finding, failed
from tests.experiments.tabular import kl, minimise, pairs, policy_loss, regularised, tilt

dpo = registry.entry("demeanor.objectives", "dpo")
ARMS = 6
BETAS = (2.0, 1.0, 0.5, 0.2, 0.1)
STEP = 1e-3  # relative step of beta for the slope: its error is of second order, 1e-6


def problem() -> tuple[Tensor, Tensor]:
    """Log-probabilities of a reference and the rewards of its arms."""
    drawn = torch.Generator().manual_seed(0)
    reference = torch.randn(ARMS, generator=drawn, dtype=torch.float64).log_softmax(0)
    return reference, torch.randn(ARMS, generator=drawn, dtype=torch.float64)


def population_dpo(reference_A: Tensor, reward_A: Tensor, beta: float) -> Tensor:
    """The minimum of DPO when every pair is compared infinitely often: a soft label is a smoothing of its own for each pair."""
    order = reward_A.argsort(descending=True).tolist()
    ordered = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]

    def loss(logits: Tensor) -> Tensor:
        policy = logits.log_softmax(0)
        each = []
        for better, worse in ordered:
            flipped = float(torch.sigmoid(reward_A[worse] - reward_A[better]))
            spec = dpo.Spec(beta=beta, label_smoothing=flipped)
            each.append(policy_loss(dpo, spec, policy, reference_A)(pairs([better], [worse])).total)
        return (
            torch.stack(each).sum() / beta**2
        )  # the scale of the loss falls with beta: the tolerance does not

    return minimise(loss, reference_A).log_softmax(0)


@cache
def findings() -> tuple[Finding, ...]:
    reference, reward = problem()
    slopes, gaps = [], []
    for beta in BETAS:
        (r0, k0), (r1, k1) = (
            (float(p.exp() @ reward), kl(p, reference))
            for p in (population_dpo(reference, reward, beta * (1 + sign * STEP)) for sign in (1.0, -1.0))
        )
        slopes.append((r1 - r0) / (k1 - k0) / beta)
        best = beta * float(torch.logsumexp(reference + reward / beta, 0))
        gaps.append(best - regularised(population_dpo(reference, reward, beta), reference, reward, beta))
    worst_slope = max(abs(s - 1) for s in slopes)
    covered, runs = coverage(reference, tilt(reference, reward, 0.2))
    return (
        Finding(
            "slope dR/dKL over beta, worst of 5 betas",
            "1",
            1 + worst_slope,
            worst_slope < 1e-3,
            n=5,
            places=6,
        ),
        Finding("J* - beta log Z, largest", "0", max(map(abs, gaps)), max(map(abs, gaps)) < 1e-6, n=5),
        Finding(
            "95% interval of the sampled KL covers the exact one",
            "0.95",
            covered,
            0.93 <= covered <= 0.97,  # 1,000 runs: a standard error of 0.7 points
            n=runs,
        ),
    )


def coverage(reference_A: Tensor, policy_A: Tensor, runs: int = 1000, draws: int = 200) -> tuple[float, int]:
    """How often the interval that `demeanor frontier` gives of a KL holds the exact KL."""
    rng, exact, hits = np.random.default_rng(0), kl(policy_A, reference_A), 0
    ratio, p = (policy_A - reference_A).numpy(), policy_A.exp().numpy()
    for _ in range(runs):
        arms = rng.choice(ARMS, size=draws, p=p / p.sum())
        found = divergence([KlFromParent(str(n), str(n), float(ratio[a]), 1) for n, a in enumerate(arms)])
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= exact <= found.high
    return hits / runs, runs


def test_the_frontier_has_slope_beta_and_height_beta_log_z() -> None:
    assert failed(findings()) == []


def test_no_policy_of_any_loss_lies_above_the_frontier() -> None:
    """For every KL the best reward is the tilted policy's: 300 random policies, and each lies below."""
    reference, reward = problem()
    betas = np.geomspace(0.01, 100, 2000)
    curve = [tilt(reference, reward, float(b)) for b in betas]
    kls = np.array([kl(p, reference) for p in curve])[::-1]
    best = np.array([float(p.exp() @ reward) for p in curve])[::-1]
    drawn = torch.Generator().manual_seed(1)
    above = []
    for _ in range(300):
        policy = (reference + 2 * torch.randn(ARMS, generator=drawn, dtype=torch.float64)).log_softmax(0)
        above.append(float(policy.exp() @ reward) - float(np.interp(kl(policy, reference), kls, best)))
    assert max(above) < 1e-6
