"""C6: what label noise does to a reward model, and why all pairs of a prompt belong into one step.

A linear reward model is fitted with the `reward` objective. Of labels flipped with probability e, the accuracy measured on noisy labels is
(1 - 2e) a + e where a is the accuracy on clean ones; the direction survives and the scale shrinks, so a KL coefficient tuned on clean
labels is too strong on noisy ones. Rankings of K answers: all K (K - 1) / 2 pairs of a prompt in one step against shuffled pairs, which
visit every answer K - 1 times an epoch (Ouyang et al. 2022, section 3.5).
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from tests.experiments.findings import Finding, failed, interval
from tests.experiments.tabular import NONE, flat, minimise, pairs

reward = registry.entry("demeanor.objectives", "reward")
WIDTH, CHUNK, TRAINED, TESTED = 8, 128, 4096, 20_480
RATES = (0.1, 0.2, 0.3, 0.4)


class Noisy(NamedTuple):
    """A reward model fitted to noisy labels: its accuracy on noisy and clean ones, its scale and its direction."""

    measured: float
    clean: float
    scale: float
    cosine: float


def loss_of(features_PD: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Summed loss, number of pairs ordered rightly, and of pairs, of features (pairs x 2 x width), the chosen first."""
    total, right, counted = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for some in features_PD.split(CHUNK):
        batch = pairs(*torch.arange(2 * len(some)).reshape(-1, 2).T)
        found: Loss = reward.loss(reward.Spec(), Outputs(rewards_B=some.reshape(-1, WIDTH) @ u), batch)
        total, right = total + found.total, right + found.metrics["accuracy"][0]
        counted = counted + found.metrics["accuracy"][1]
    return total, right, counted


def compare(n: int, seed: int, w: Tensor, flips: float, labels: str) -> tuple[Tensor, Tensor]:
    """Features of n comparisons, and which label is wrong about the truth: the better one is chosen (or by Bradley-Terry), then flipped."""
    drawn = torch.Generator().manual_seed(seed)
    both = torch.randn(n, 2, WIDTH, generator=drawn, dtype=torch.float64)
    gap = (both[:, 0] - both[:, 1]) @ w
    if labels == "deterministic":
        wins = gap > 0
    else:
        wins = torch.rand(n, generator=drawn, dtype=torch.float64) < gap.sigmoid()
    wins ^= torch.rand(n, generator=drawn) < flips
    chosen = torch.where(wins[:, None, None], both, both.flip(1))
    return chosen, wins ^ (gap > 0)


def accuracy(features: Tensor, u: Tensor) -> float:
    _, right, counted = loss_of(features, u)
    return float(right / counted)


def noisy(flips: float, labels: str) -> Noisy:
    """Fit to noisy labels, measure on other noisy labels and on what is true."""
    w = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w = 1.5 * w / w.norm()
    seen, _ = compare(TRAINED, 1, w, flips, labels)
    u = minimise(lambda at: loss_of(seen, at)[0] / TRAINED, torch.zeros(WIDTH, dtype=torch.float64), steps=30)
    held, wrong = compare(TESTED, 2, w, flips, labels)
    truth = torch.where(wrong[:, None, None], held.flip(1), held)
    if labels == "bt":
        truth, _ = compare(TESTED, 2, w, 0.0, labels)  # clean labels of Bradley-Terry are drawn, not ordered
    cosine = float(u @ w / (u.norm() * w.norm()))
    return Noisy(accuracy(held, u), accuracy(truth, u), float(u.norm() / w.norm()), cosine)


@cache
def findings() -> tuple[Finding, ...]:
    rows: list[Finding] = []
    for labels in ("deterministic", "bt"):
        found = {e: noisy(e, labels) for e in RATES}
        name = "the better answer chosen" if labels == "deterministic" else "Bradley-Terry labels"
        for e, it in found.items():
            wanted = (1 - 2 * e) * it.clean + e
            half = 1.96 * math.sqrt(it.measured * (1 - it.measured) / TESTED)
            rows.append(
                Finding(
                    f"accuracy on labels flipped with e = {e}, {name}",
                    f"(1 - 2e) {it.clean:.3f} + e = {wanted:.3f}",
                    it.measured,
                    abs(it.measured - wanted) < 0.01,
                    it.measured - half,
                    it.measured + half,
                    n=TESTED,
                )
            )
        least = min(it.cosine for it in found.values())
        rows.append(
            Finding(
                f"least cosine of the fitted and the true reward, {name}",
                "> 0.9",
                least,
                least > 0.9,
                n=TRAINED,
            )
        )
    scales = [found[e].scale for e in RATES]
    clean = noisy(0.0, "bt").scale
    falls = all(a > b for a, b in zip([clean, *scales], scales))
    rows.append(
        Finding(
            "scale of the fitted reward at e = 0.4 over that at e = 0, Bradley-Terry labels",
            "< 1, falling with e",
            scales[-1] / clean,
            falls,
            n=TRAINED,
        )
    )
    return (*rows, overfitting())


# ---- all pairs of a prompt in one step, or shuffled pairs ----

PROMPTS, RANKED, FEATURES, STEP_PROMPTS, LR, EPOCHS = 64, 5, 192, 8, 0.1, 2


def rankings(prompts: int, seed: int, w: Tensor) -> tuple[Tensor, Tensor]:
    """Features (prompts x K x width) and ranks of K answers by a noisy judge."""
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(prompts, RANKED, FEATURES, generator=drawn, dtype=torch.float64)
    noise = torch.randn(prompts, RANKED, generator=drawn, dtype=torch.float64)
    return x, (x @ w + noise).argsort(1, descending=True).argsort(1)


def ranked_batch(ranks_NK: Tensor) -> TokenBatch:
    """Trees of K ranked answers."""
    return flat(NONE, torch.arange(len(ranks_NK)).repeat_interleave(ranks_NK.shape[1]), ranks_NK.reshape(-1))


def overfits(seed: int) -> tuple[float, float]:
    """Held-out loss after the first and the second epoch, shuffled pairs minus whole prompts."""
    w = torch.randn(FEATURES, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / math.sqrt(
        FEATURES
    )
    x, ranks = rankings(PROMPTS, 10 + seed, w)
    held_x, held_ranks = rankings(128, 500 + seed, w)
    held = ranked_batch(held_ranks)
    first, second = torch.combinations(torch.arange(RANKED)).T
    all_pairs = torch.stack(
        [
            torch.where((ranks[:, first] < ranks[:, second])[..., None], x[:, first], x[:, second]),
            torch.where((ranks[:, first] < ranks[:, second])[..., None], x[:, second], x[:, first]),
        ],
        dim=2,
    ).reshape(-1, 2, FEATURES)
    by_pair = pairs(*torch.arange(2 * STEP_PROMPTS).reshape(-1, 2).T)

    def train(whole: bool) -> list[float]:
        drawn = torch.Generator().manual_seed(seed)
        u = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
        optimiser, found = torch.optim.SGD([u], lr=LR), []
        for _ in range(EPOCHS):
            rows = torch.randperm(PROMPTS if whole else len(all_pairs), generator=drawn)
            for some in rows.split(STEP_PROMPTS):
                features = x[some] if whole else all_pairs[some]
                batch = ranked_batch(ranks[some]) if whole else by_pair
                loss = reward.loss(
                    reward.Spec(), Outputs(rewards_B=features.reshape(-1, FEATURES) @ u), batch
                )
                optimiser.zero_grad()
                (loss.total / loss.count).backward()
                optimiser.step()
            with torch.no_grad():
                score = reward.loss(reward.Spec(), Outputs(rewards_B=held_x.reshape(-1, FEATURES) @ u), held)
            found.append(float(score.total / score.count))
        return found

    whole, shuffled = train(True), train(False)
    return shuffled[0] - whole[0], shuffled[1] - whole[1]


def overfitting(seeds: int = 6) -> Finding:
    """Same data, same learning rate, same number of epochs, as many terms a step."""
    mean, low, high = interval([overfits(seed)[1] for seed in range(seeds)])
    text = "held-out loss after 2 epochs, shuffled pairs minus whole prompts (K = 5)"
    return Finding(text, "> 0: shuffled pairs overfit", mean, low > 0, low, high, n=PROMPTS, seeds=seeds)


def test_noisy_labels_lower_the_measured_accuracy_and_the_scale_and_whole_prompts_overfit_less() -> None:
    assert failed(findings()) == []
