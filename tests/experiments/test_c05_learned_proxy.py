"""C5 in the language model: a learned reward model is over-optimised, and what a KL coefficient and an ensemble do about it.

Gold: a review is the better for its first two good words and the worse for more; bad words cost a half. Reward models see comparisons of
the reference's own answers, where more than two good words are rare. `make experiments`, about 4 minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from demeanor.model.reward_model import RewardModel
from demeanor.training.generation_eval import rewards
from demeanor.training.scoring import RewardSum, group_tree
from tests.experiments.charts import Series, plane, write
from tests.experiments.findings import FIGURES, Finding, failed, interval, publish
from tests.experiments.tiny_lm import (
    ANSWERS,
    BAD,
    GOOD,
    NOT,
    PLAIN,
    PROMPTS,
    Point,
    base,
    comparisons,
    every_answer,
    gold_of_all,
    learned,
    logprobs,
    online,
    place,
    reward_model,
)

SEEDS, STEPS, COUNT, LR, MEMBERS = 3, 80, 16, 3e-3, 3
BETAS = (1.0, 0.5, 0.25, 0.12, 0.05)
COMPARED = 40  # comparisons a prompt


PRAISE = (0.0, 1.0, 2.0, 0.0, -2.0)  # gold of so many good words: two are right, more is flattery


def capped(answer: Sequence[int]) -> float:
    """Good words are right up to two; a bad word and a word of no review cost a half each."""
    other = sum(t in BAD or t not in (*GOOD, NOT, PLAIN) for t in answer)
    return PRAISE[sum(t in GOOD for t in answer)] - 0.5 * other


def proxy_of_all(model: RewardModel) -> Tensor:
    """A reward model's rewards of all answers to all prompts."""
    answers = [tuple(a) for a in every_answer().tolist()]
    with torch.no_grad():
        found = [rewards(model, [group_tree(prompt, answers)]) for prompt in PROMPTS]  # type: ignore[arg-type]
    return torch.tensor(found, dtype=torch.float64)


class Curve(NamedTuple):
    """Gold of the exact optimum of a proxy at each distance sqrt(KL), and where it is highest."""

    distances: list[float]
    gold: list[float]

    @property
    def peak(self) -> float:
        return self.distances[int(np.argmax(self.gold))]

    def at(self, distance: float) -> float:
        return float(np.interp(distance, self.distances, self.gold))


def optimum(reference: Tensor, proxy_PA: Tensor, gold: Tensor) -> Curve:
    """Tilt the reference by the proxy, from a strong pull to a weak one."""
    points = [
        place((reference + proxy_PA / b).log_softmax(1), reference, gold)
        for b in np.geomspace(20, 0.03, 150).tolist()
    ]
    return Curve([math.sqrt(max(p.kl, 0.0)) for p in points], [p.gold for p in points])


class Run(NamedTuple):
    """One seed: the exact curve of one proxy, the ends of online runs by KL coefficient, the end with an ensemble, gold at the start."""

    exact: Curve
    ends: list[Point]
    ensemble: Point
    start: float


def run(seed: int) -> Run:
    start, gold = base(seed), gold_of_all(capped)
    reference = logprobs(start)
    sets = [comparisons(start, COMPARED, 100 * seed + i, capped) for i in range(MEMBERS)]
    members = [reward_model(start, trees, seed + i, epochs=8) for i, trees in enumerate(sets)]

    def trained(score: RewardSum, beta: float) -> Point:
        policy = online(start, "rloo", score, steps=STEPS, count=COUNT, lr=LR, seed=seed, kl_coef=beta)
        return place(logprobs(policy), reference, gold)

    ends = [trained(learned(members[:1]), beta) for beta in BETAS]
    ensemble = trained(learned(members, "worst"), BETAS[-1])
    return Run(
        optimum(reference, proxy_of_all(members[0]), gold),
        ends,
        ensemble,
        place(reference, reference, gold).gold,
    )


def fitted_peak(points: Sequence[Point], start: float) -> float:
    """The distance at which Gao's form for RL, R = d (a - b log d), is highest, fitted to gold above the start: exp(a / b - 1)."""
    d = np.array([math.sqrt(p.kl) for p in points])
    y = np.array([p.gold - start for p in points])
    a, b = np.linalg.lstsq(np.stack([d, -d * np.log(d)], axis=1), y, rcond=None)[0]
    return float(math.exp(a / b - 1))


def claims(runs: Sequence[Run]) -> list[Finding]:
    """What all seeds say."""
    told = []

    def claim(text: str, theory: str, values: Sequence[float], holds: Callable[[float], bool]) -> None:
        mean, low, high = interval(values)
        told.append(Finding(text, theory, mean, holds(mean), low, high, n=ANSWERS, seeds=len(runs)))

    fell = [max(r.exact.gold) - r.exact.gold[-1] for r in runs]
    claim(
        "exact optimum of the proxy: gold at its peak minus gold at the end",
        "> 0: a hump",
        fell,
        lambda m: min(fell) > 0,
    )
    turned = [max(p.gold for p in r.ends) - r.ends[-1].gold for r in runs]
    claim(
        "RLOO: gold at the best KL coefficient minus at the smallest",
        "> 0: a hump",
        turned,
        lambda m: min(turned) > 0,
    )
    peaks = [fitted_peak(r.ends, r.start) / r.exact.peak for r in runs]
    text = "peak of gold over RLOO's runs (Gao's form fitted) over the exact optimum's"
    claim(text, "reported; 1 at its optimum", peaks, lambda m: True)
    best = [math.sqrt(max(r.ends, key=lambda p: p.gold).kl) / r.exact.peak for r in runs]
    claim(
        "d of RLOO's best of five KL coefficients over the exact optimum's",
        "reported; 1 at its optimum",
        best,
        lambda m: True,
    )
    apart = [float(np.mean([p.gold - r.exact.at(math.sqrt(p.kl)) for p in r.ends])) for r in runs]
    claim(
        "gold of RLOO's runs minus the exact optimum's at the same KL, mean over coefficients",
        "reported; 0 at its optimum",
        apart,
        lambda m: True,
    )
    better = [r.ensemble.gold - r.ends[-1].gold for r in runs]
    text = f"gold with {MEMBERS} reward models (combine: worst) minus with one, smallest KL coefficient"
    claim(text, "reported; helps only where the models err apart", better, lambda m: True)
    return told


def publish_all(runs: Sequence[Run]) -> list[Finding]:
    """Print the table, write JSON and the picture."""
    told, series = claims(runs), {}
    for n, r in enumerate(runs):
        series[f"exact optimum, seed {n}"] = Series(list(zip(r.exact.distances, r.exact.gold)), joined=True)
    for n, r in enumerate(runs):
        series[f"RLOO, seed {n}"] = Series([(math.sqrt(p.kl), p.gold) for p in r.ends])
    series["ensemble, worst"] = Series([(math.sqrt(r.ensemble.kl), r.ensemble.gold) for r in runs])
    about = "Gold reward against distance under a learned proxy: it rises, turns and falls"
    write(FIGURES / "hump.svg", plane(series, "d = sqrt(KL), KL in nats an answer", "gold reward", about))
    publish("c05-lm", told, ends=[r.ends for r in runs], ensembles=[r.ensemble for r in runs])
    return told


@pytest.mark.experiment
def test_a_learned_proxy_is_over_optimised_and_a_kl_coefficient_only_stops_earlier() -> None:
    assert failed(publish_all([run(seed) for seed in range(SEEDS)])) == []


def test_the_capped_gold_turns_where_a_bag_of_words_goes_on() -> None:
    assert [capped(a) for a in ((4, 5, 10, 11), (4, 5, 6, 11), (4, 4, 4, 4), (7, 4, 10, 11))] == [
        2,
        0,
        -2,
        0.5,
    ]
