"""C9: refusals as signal detection. A stricter threshold moves along one ROC curve; only discrimination, d', gets off it.

Contrast twins: a safe and an unsafe request that differ in one word. A model refuses where its evidence, N(d', 1) for unsafe and N(0, 1)
for safe requests, exceeds its threshold. d', the criterion and their intervals are the repository's (`profile.refusals`).
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import numpy as np
from scipy import special, stats

from demeanor.core.types import Item, Message
from demeanor.evaluation import statistics
from demeanor.evaluation.items import SAFE, UNSAFE
from demeanor.evaluation.profile import refusals
from demeanor.evaluation.result import Refusals
from demeanor.evaluation.result_rows import PairedTable, Row
from demeanor.evaluation.statistics import Floats
from tests.evaluation import synthetic
from tests.experiments.findings import Finding, failed

TWINS, MODELS = 600, 32


def items() -> list[Item]:
    """Twins of one cluster each."""
    return [
        Item(
            f"{axis}-{n}",
            (Message("user", "?"),),
            "refusal",
            {"refuse": axis == UNSAFE},
            axis,
            f"twin-{n}",
            f"{other}-{n}",
        )
        for axis, other in ((UNSAFE, SAFE), (SAFE, UNSAFE))
        for n in range(TWINS)
    ]


def rows(variant: str, found: list[Item], refused: dict[str, bool]) -> list[Row]:
    """Answers of a variant, refused by a layer or answered."""
    made = []
    for item in found:
        told = synthetic.row(
            item, variant, float(refused[item.id] == (item.axis == UNSAFE)), layers=0, draw=random.Random(0)
        )
        made.append(replace(told, refused_by="policy" if refused[item.id] else ""))
    return made


def evidence(found: list[Item], d_prime: float, seed: int) -> dict[str, float]:
    """How unsafe each request looks; twins share half of the noise, as they share all words but one."""
    rng = np.random.default_rng(seed)
    shared = dict(zip(sorted({item.cluster for item in found}), rng.normal(size=TWINS)))
    own = rng.normal(size=len(found))
    return {
        item.id: d_prime * (item.axis == UNSAFE) + math.sqrt(0.5) * (shared[item.cluster] + noise)
        for item, noise in zip(found, own)
    }


def picture(refused: dict[str, bool]) -> Refusals:
    """The refusal picture of one variant."""
    found = items()
    told = refusals(PairedTable(rows("v", found, refused), found), "v")
    assert told is not None
    return told


def spearman(spread: float, seed: int = 0) -> float:
    """Rank correlation of unsafe and safe refusals over models whose thresholds differ and whose d' differ by `spread`."""
    rng = np.random.default_rng(seed)
    threshold, d = rng.normal(0.75, 0.8, MODELS), 1.5 + spread * rng.normal(size=MODELS)
    return float(stats.spearmanr(special.ndtr(d - threshold), special.ndtr(-threshold)).statistic)


def gates(correlation: float, n: int = 200_000) -> tuple[Floats, Floats]:
    """Rates (unsafe, safe) of one gate, and of refusing where either of two gates does; gates see the request with correlated noise."""
    rng = np.random.default_rng(1)
    noise = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], size=n)
    one = np.array([(noise[:, 0] + d > 1.0).mean() for d in (1.5, 0.0)])
    either = np.array([((noise + d) > 1.0).any(1).mean() for d in (1.5, 0.0)])
    return one, either


@cache
def findings() -> tuple[Finding, ...]:
    found = items()
    plain, better = evidence(found, 1.5, seed=0), evidence(found, 2.3, seed=0)
    base = picture({i: x > 0.75 for i, x in plain.items()})
    prompted = picture({i: x > 0.25 for i, x in plain.items()})
    trained = picture({i: x > 0.75 for i, x in better.items()})
    told = []
    for claim, rate, wanted in (
        ("d' of a model with d' = 1.5", base.d_prime, 1.5),
        ("d' with a stricter threshold (a system prompt)", prompted.d_prime, 1.5),
        ("d' with better discrimination (contrast pairs)", trained.d_prime, 2.3),
        ("criterion of the model, threshold 0.75 - d' / 2", base.criterion, 0.0),
        ("criterion with the stricter threshold", prompted.criterion, -0.5),
    ):
        assert rate.low is not None
        assert rate.high is not None
        told.append(
            Finding(
                claim,
                f"{wanted:g}",
                rate.value,
                rate.low <= wanted <= rate.high,
                rate.low,
                rate.high,
                n=2 * TWINS,
            )
        )
    for spread, wanted, slack in ((0.0, 1.0, 1e-9), (0.2, 0.98, 0.03), (0.5, 0.81, 0.12)):
        rho = float(np.mean([spearman(spread, seed) for seed in range(50)]))
        text = f"Spearman of safety and over-refusal over 32 models, sd of d' {spread:g}"
        told.append(Finding(text, f"{wanted:g}", rho, abs(rho - wanted) <= slack, n=MODELS, seeds=50))
    one, either = gates(0.0)
    _, correlated = gates(0.9)
    for name, index in (("unsafe", 0), ("safe", 1)):
        formula = 1 - (1 - one[index]) ** 2
        text = f"either of two independent gates refuses: {name}"
        told.append(
            Finding(
                text,
                f"1 - (1 - {one[index]:.3f})^2 = {formula:.3f}",
                either[index],
                abs(either[index] - formula) < 0.005,
                n=200_000,
            )
        )
        text = f"either of two gates correlated 0.9 refuses: {name}"
        wanted = (0.754, 0.202)[index]
        told.append(
            Finding(
                text,
                f"{wanted:g}, less than independent",
                correlated[index],
                abs(correlated[index] - wanted) < 0.01,
                n=200_000,
            )
        )
    many = np.array(1e6)
    d_one, d_either = (
        float(statistics.discrimination(r[0] * many, many, r[1] * many, many)[0]) for r in (one, either)
    )
    told.append(
        Finding(
            "d' of the two independent gates together minus d' of one",
            "> 0: two looks",
            d_either - d_one,
            d_either > d_one,
            n=200_000,
        )
    )
    return tuple(told)


def test_a_threshold_moves_along_one_curve_and_only_discrimination_leaves_it() -> None:
    assert failed(findings()) == []
