"""C5: over-optimisation of a proxy. A learned proxy's gold reward rises, turns and falls (Gao, Schulman & Hilton 2022, 2210.10760).

Answers are feature vectors x ~ N(0, I); gold = w.x - x'Ax/2; the proxy u.x is fitted to N comparisons with the `reward` objective. Tilting
the answers by exp(proxy / beta) gives, with d = sqrt(KL),  gold(d) = gold(0) + sqrt(2) (w.u) d - (u'Au) d^2  for a unit vector u: the peak
lies at d* = (w.u) / (sqrt(2) u'Au). A proxy that is gold plus independent
Gaussian noise has no such hump; with heavy-tailed noise gold falls back to where it began (Kwa et al. 2024, 2407.14503).
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from demeanor.core import registry
from demeanor.evaluation.statistics import Floats
from demeanor.model.tensors import Outputs
from tests.experiments.findings import Finding, failed, interval
from tests.experiments.tabular import minimise, pairs

reward = registry.entry("demeanor.objectives", "reward")
WIDTH, ANSWERS, CHUNK = 10, 16_384, 128
DISTANCES = np.linspace(0.05, 3.2, 64)
SEEDS = 5


class Gold(NamedTuple):
    """gold(x) = w.x - x'Ax / 2."""

    w: Tensor
    A: Tensor

    def of(self, x_ND: Tensor) -> Tensor:
        return x_ND @ self.w - 0.5 * ((x_ND @ self.A) * x_ND).sum(1)

    def peak(self, u: Tensor) -> float:
        """d* along the unit vector of u."""
        u = u / u.norm()
        return float(self.w @ u / (math.sqrt(2) * (u @ self.A @ u)))


def gold() -> Gold:
    """A gold reward whose curvature is small along w and larger elsewhere, as the reference project has it."""
    drawn = torch.Generator().manual_seed(0)
    w = torch.randn(WIDTH, generator=drawn, dtype=torch.float64)
    root = torch.randn(WIDTH, WIDTH, generator=drawn, dtype=torch.float64) / math.sqrt(WIDTH)
    A = root @ root.T + 0.2 * torch.eye(WIDTH, dtype=torch.float64)
    w = 1.4 * w / w.norm()
    return Gold(w, 0.7 * A / float(w @ A @ w) * float(w @ w))


def answers(seed: int, n: int = ANSWERS) -> Tensor:
    """Feature vectors of n answers of the reference, each as likely as the other."""
    return torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(at: Gold, comparisons: int, seed: int, flips: float = 0.0) -> Tensor:
    """The linear reward model of maximum likelihood: Bradley-Terry labels, a share of them flipped."""
    drawn = torch.Generator().manual_seed(1000 + seed)
    left, right = (torch.randn(comparisons, WIDTH, generator=drawn, dtype=torch.float64) for _ in range(2))
    wins = (
        torch.rand(comparisons, generator=drawn, dtype=torch.float64) < (at.of(left) - at.of(right)).sigmoid()
    )
    wins ^= torch.rand(comparisons, generator=drawn) < flips
    features = torch.stack(
        [torch.where(wins[:, None], left, right), torch.where(wins[:, None], right, left)], dim=1
    )
    batch = pairs(torch.arange(0, 2 * CHUNK, 2), torch.arange(1, 2 * CHUNK, 2))

    def loss(u: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for some in features.split(CHUNK):
            rewards_B = some.reshape(-1, WIDTH) @ u
            its = batch if len(some) == CHUNK else pairs(*torch.arange(2 * len(some)).reshape(-1, 2).T)
            total = total + reward.loss(reward.Spec(), Outputs(rewards_B=rewards_B), its).total
        return total / comparisons

    return minimise(loss, torch.zeros(WIDTH, dtype=torch.float64))


def follow(at: Gold, u: Tensor, seed: int) -> Floats:
    """Gold above the start of the optimum of E u.x - beta KL, which is N(u / beta, I), at each of DISTANCES: sqrt(2) d along u."""
    unit, x_ND = u / u.norm(), answers(seed)
    start = at.of(x_ND).mean()
    return np.array([float(at.of(x_ND + math.sqrt(2) * d * unit).mean() - start) for d in DISTANCES])


def best_of(proxy_N: Floats, gold_N: Floats, n: int) -> float:
    """Gold of the best of n answers by the proxy, exactly: the k-th of M ranked answers wins with (k/M)^n - ((k-1)/M)^n."""
    ranked = gold_N[proxy_N.argsort()]
    edge = (np.arange(len(ranked) + 1) / len(ranked)) ** n
    return float(np.diff(edge) @ ranked)


class Hump(NamedTuple):
    """Where gold turned, where theory says so, and how far above the start it ended, of several fitted proxies."""

    peaks: list[float]
    theory: list[float]
    ends: list[float]


def humps(comparisons: int, flips: float = 0.0) -> Hump:
    """One proxy a seed; each is followed on answers of its own."""
    at, found = gold(), Hump([], [], [])
    for seed in range(SEEDS):
        u = fit(at, comparisons, seed, flips)
        curve = follow(at, u, seed)
        found.peaks.append(float(DISTANCES[curve.argmax()]))
        found.theory.append(at.peak(u))
        found.ends.append(float(curve[-1]))
    return found


@cache
def findings() -> tuple[Finding, ...]:
    found = {n: humps(n) for n in (50, 400, 2000)}
    noisy = humps(400, flips=0.25)
    rows = []
    for name, hump in (
        *((f"{n} comparisons", h) for n, h in found.items()),
        ("400 comparisons, 25% flipped", noisy),
    ):
        ratio = interval([p / t for p, t in zip(hump.peaks, hump.theory)])
        rows.append(
            Finding(
                f"peak of gold over theory's d*, {name} (d* = {np.mean(hump.theory):.2f})",
                "1 +- 0.25",
                ratio[0],
                all(abs(p / t - 1) <= 0.25 for p, t in zip(hump.peaks, hump.theory)),
                ratio[1],
                ratio[2],
                n=ANSWERS,
                seeds=SEEDS,
            )
        )
    means = [float(np.mean(found[n].theory)) for n in (50, 400, 2000)]
    measured = [float(np.mean(found[n].peaks)) for n in (50, 400, 2000)]
    fell = interval(found[400].ends)
    lower = float(np.mean(noisy.peaks))
    return (
        *rows,
        Finding(
            "peak at 2,000 over peak at 50 comparisons",
            f"{means[2] / means[0]:.2f}, rising through 400",
            measured[2] / measured[0],
            measured[0] < measured[1] < measured[2],
            n=ANSWERS,
            seeds=SEEDS,
        ),
        Finding(
            "peak with 25% flipped labels over peak without, 400 comparisons",
            "< 1",
            lower / measured[1],
            lower < measured[1],
            n=ANSWERS,
            seeds=SEEDS,
        ),
        Finding(
            "gold at d = 3.2 minus gold at the start, 400 comparisons",
            "< 0",
            *_of(fell, fell[2] < 0),
            n=ANSWERS,
            seeds=SEEDS,
        ),
        best_of_n(),
        *controls(),
    )


def best_of_n() -> Finding:
    """Gao's form for best-of-n, R = d (a - b d) with d = sqrt(log n - (n - 1) / n), fitted to gold; the best of n is drawn exactly."""
    at, r2 = gold(), []
    ns = 2 ** np.arange(1, 11)
    d = np.sqrt(np.log(ns) - (ns - 1) / ns)
    for seed in range(SEEDS):
        u, x_ND = fit(at, 400, seed), answers(seed)
        unit, start = u / u.norm(), at.of(x_ND).mean()
        uniform = torch.special.ndtr(x_ND @ unit)
        y = []
        for n in (
            ns
        ):  # the greatest of n normals is the normal quantile of U^(1/n); what is across u stays as drawn
            best = torch.special.ndtri(uniform ** (1 / float(n)))
            y.append(float(at.of(x_ND + (best - x_ND @ unit)[:, None] * unit).mean() - start))
        design = np.stack([d, -d * d], axis=1)
        rest = np.array(y) - design @ np.linalg.lstsq(design, np.array(y), rcond=None)[0]
        r2.append(1 - float(rest @ rest) / float(np.var(y) * len(y)))
    mean, low, high = interval(r2)
    text = "best-of-n: R2 of gold = d (a - b d), n = 2 to 1,024"
    return Finding(text, "> 0.95", mean, min(r2) > 0.95, low, high, n=ANSWERS, seeds=SEEDS)


def controls() -> tuple[Finding, ...]:
    """A proxy that is gold plus an error of its own: best-of-n by it never turns gold down if the error is Gaussian, and brings it back to 0 if it is t(2)."""
    rng, ns = np.random.default_rng(0), (1, 10, 100, 1000)
    gold_N = rng.normal(size=(400_000))
    gaussian = [best_of(gold_N + rng.normal(size=len(gold_N)), gold_N, n) for n in ns]
    heavy = [best_of(gold_N + rng.standard_t(2, size=len(gold_N)), gold_N, n) for n in ns]
    theory = 3.2414 / math.sqrt(
        2
    )  # E[gold | proxy] = proxy / 2, and the greatest of 1,000 normals is 3.2414 on average
    rises = float(np.diff(gaussian).min())
    return (
        Finding(
            "Gaussian error, best of 1,000: gold",
            f"{theory:.2f}",
            gaussian[-1],
            abs(gaussian[-1] / theory - 1) < 0.05,
            n=len(gold_N),
        ),
        Finding(
            "Gaussian error, smallest rise of gold over n = 1, 10, 100, 1,000",
            "> 0: no hump",
            rises,
            rises > 0,
            n=len(gold_N),
        ),
        Finding(
            "t(2) error, best of 1,000 over best of 10: gold",
            "< 0.5: back to the start",
            heavy[-1] / heavy[1],
            heavy[1] > heavy[2] > heavy[3] and heavy[-1] < 0.5 * heavy[1],
            n=len(gold_N),
        ),
    )


def _of(found: tuple[float, float, float], holds: bool) -> tuple[float, bool, float, float]:
    return found[0], holds, found[1], found[2]


def test_a_learned_proxy_has_gaos_hump_and_independent_noise_has_none() -> None:
    assert failed(findings()) == []
