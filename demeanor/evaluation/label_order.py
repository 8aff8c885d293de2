"""The order of a labelling queue by uncertainty, with a random arm that shows whether it helps.

In: rewards of several reward models (or one) for the answers of each item. Out: how far they disagree, an order, and, once there are
labels, how many bits a comparison of each arm told beyond what the reward models knew.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from demeanor.core.table import Paragraph, Section, Table, estimate
from demeanor.evaluation.label_agreement import Opinion
from demeanor.evaluation.statistics import Labels, cluster_bootstrap, expanded, percentile

Rewards = Mapping[str, Sequence[float]]
"""The reward of each answer of an item, by reward model."""
RANDOM, UNCERTAIN = "random", "uncertain"
DRAWS = 2000


class QueuePlace(NamedTuple):
    """An item's place in the queue: its index, the arm that took it, and the disagreement of the reward models about it."""

    row: int
    arm: str
    disagreement: float


def disagreement(rewards: Rewards) -> float:
    """How uncertain it is which answer is better, from 0: over pairs of answers, the mean deviation of the models' probabilities.

    One model alone: the mean distance of its probabilities from certainty, at most 1/2.
    """
    probabilities = np.array(
        [
            [_sigmoid(each[a] - each[b]) for a, b in combinations(range(len(each)), 2)]
            for each in rewards.values()
        ]
    )
    if len(probabilities) == 1:
        return float(np.mean(0.5 - np.abs(probabilities - 0.5)))
    return float(np.mean(probabilities.std(axis=0)))


def order(rewards: Sequence[Rewards], count: int, random_share: float, seed: int) -> list[QueuePlace]:
    """The first `count` items to label: each place is of the random arm with this probability, else of the most uncertain item left."""
    rng = random.Random(f"label order/{seed}")
    scores = [disagreement(one) for one in rewards]
    left = sorted(range(len(rewards)), key=lambda n: -scores[n])
    found: list[QueuePlace] = []
    while left and len(found) < count:
        by_chance = rng.random() < random_share
        chosen = left.pop(rng.randrange(len(left)) if by_chance else 0)
        found.append(QueuePlace(chosen, RANDOM if by_chance else UNCERTAIN, scores[chosen]))
    return found


@dataclass(frozen=True, slots=True)
class ArmGain:
    """What the labels of an arm told: bits a comparison (-log2 of its probability under the mean of the reward models)."""

    arm: str
    items: int
    comparisons: int
    bits: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class LabelGain:
    """The gain of each arm, and of uncertain over random with its interval; None where an arm has no label."""

    arms: tuple[ArmGain, ...]
    difference: float | None
    low: float | None
    high: float | None


def gain(
    labels: Sequence[Opinion], rewards: Mapping[str, Rewards], arms: Mapping[str, str]
) -> LabelGain | None:
    """How many bits a comparison of each arm told beyond the reward models; None without items that have rewards."""
    told = [
        (arms[label.item], label.item, bits)
        for label in labels
        if label.choice == "ranked" and rewards.get(label.item) and arms.get(label.item)
        for bits in _bits(label, rewards[label.item])
    ]
    if not told:
        return None
    drawn = {arm: _arm(arm, [t for t in told if t[0] == arm]) for arm in sorted({arm for arm, _, _ in told})}
    both = [drawn.get(UNCERTAIN), drawn.get(RANDOM)]
    difference = low = high = None
    if both[0] and both[1]:
        difference = both[0][0].bits - both[1][0].bits
        apart = both[0][1] - both[1][1]
        if not np.isnan(apart).all():
            low, high = percentile(apart, expanded(min(x[0].items for x in both if x)))
    return LabelGain(tuple(one for one, _ in drawn.values()), difference, low, high)


def _bits(label: Opinion, rewards: Rewards) -> list[float]:
    found = []
    for a, b in combinations(range(len(label.ranks)), 2):
        if label.ranks[a] != label.ranks[b]:
            better, worse = (a, b) if label.ranks[a] < label.ranks[b] else (b, a)
            p = float(np.mean([_sigmoid(each[better] - each[worse]) for each in rewards.values()]))
            found.append(-math.log2(max(p, 1e-12)))
    return found


def _arm(arm: str, told: Sequence[tuple[str, str, float]]) -> tuple[ArmGain, np.ndarray]:
    bits_N = np.array([bits for _, _, bits in told])
    items: Labels = [item for _, item, _ in told]
    clusters = len(set(items))
    if clusters < 2:
        return ArmGain(arm, clusters, len(told), float(bits_N.mean()), None, None), np.full(DRAWS, np.nan)
    columns = np.stack([bits_N, np.ones(len(bits_N))], axis=1)
    sums_RC = cluster_bootstrap(columns, items, draws=DRAWS, seed=0 if arm == RANDOM else 1)
    means_R = sums_RC[:, 0] / sums_RC[:, 1]
    low, high = percentile(means_R, expanded(clusters))
    return ArmGain(arm, clusters, len(told), float(bits_N.mean()), low, high), means_R


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def section(found: LabelGain) -> Section:
    """The gain per label of each arm, and their difference."""
    rows = [
        (f"arm: {one.arm}", estimate(one.bits, one.low, one.high), str(one.items), str(one.comparisons))
        for one in found.arms
    ]
    if found.difference is not None:
        rows.append(("uncertain minus random", estimate(found.difference, found.low, found.high), "", ""))
    about = Paragraph(
        "Bits that one comparison told beyond the reward models' own mean probability. Noise of labellers adds to both arms."
    )
    table = Table(("", "bits a comparison (95% interval)", "items", "comparisons"), tuple(rows))
    return Section("gain", "Gain", "Whether the uncertain items teach more", (about, table))
