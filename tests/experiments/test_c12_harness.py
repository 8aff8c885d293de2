"""C12: the harness itself. Tests reject a true null in 5 of 100 runs, intervals cover, shares sum, and what does nothing is shown to do nothing.

Closer looks at each statistic stand in tests/evaluation; here all of them in the numbers of one table.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy import special

from demeanor.core.types import Item, Message
from demeanor.evaluation import profile, statistics, win_rates
from demeanor.evaluation.attribution import attribute
from demeanor.evaluation.result_rows import PairedTable
from demeanor.evaluation.statistics import Floats
from tests.evaluation.test_attribution import GAME, NAMES, additive, items, of, planted
from tests.evaluation.test_robustness import row
from tests.experiments.findings import Finding, failed

RUNS, N = 2000, 200


def same_twice(
    per_cluster: int, shared: float, effect: float = 0.0, seed: int = 0
) -> list[tuple[Floats, Floats, Floats]]:
    """Right and wrong answers of a layer measured twice, items in clusters; `effect` makes wrong answers right, on a fifth of all items at most."""
    rng, found = np.random.default_rng(seed), []
    index = np.repeat(np.arange(N // per_cluster), per_cluster)
    for _ in range(RUNS):
        if effect:
            up = (statistics.DISCORDANCE + effect) / 2
            d = rng.choice(
                [1.0, -1.0, 0.0], N, p=[up, statistics.DISCORDANCE - up, 1 - statistics.DISCORDANCE]
            )
            found.append((np.maximum(-d, 0), np.maximum(d, 0), index))
            continue
        group = rng.normal(size=(2, N // per_cluster))[:, index]
        lean = math.sqrt(shared) * group + math.sqrt(1 - shared) * rng.normal(size=(2, N))
        found.append((*(lean > 0).astype(float), index))  # type: ignore[arg-type]
    return found


def rejected(runs: list[tuple[Floats, Floats, Floats]], test: str) -> float:
    """Share of runs in which a test finds a difference at 5%."""
    hits = 0
    for seed, (before, after, clusters) in enumerate(runs):
        if test == "paired t":
            p = statistics.paired(before, after, clusters).p
            hits += p is not None and p < 0.05
        elif test == "McNemar mid-p":
            hits += statistics.mcnemar_midp(int((after > before).sum()), int((after < before).sum())) < 0.05
        elif test == "bootstrap":
            columns = np.stack([after - before, np.ones(N)], axis=1)
            sums = statistics.cluster_bootstrap(columns, clusters, draws=400, seed=seed)
            low, high = statistics.percentile(
                sums[:, 0] / sums[:, 1], statistics.expanded(len(set(clusters)))
            )
            hits += low > 0 or high < 0
        else:
            d = after - before
            hits += abs(d.mean()) > 1.96 * d.std(ddof=1) / math.sqrt(N)
    return hits / len(runs)


@cache
def findings() -> tuple[Finding, ...]:
    alone, together = same_twice(1, 0.0), same_twice(10, 0.45)
    told = []
    for name, runs, test, least, most in (
        ("paired t, 200 items", alone, "paired t", 0.04, 0.06),
        ("McNemar mid-p, 200 items", alone, "McNemar mid-p", 0.04, 0.06),
        ("bootstrap, 200 items", alone[:300], "bootstrap", 0.02, 0.09),
        ("paired t, 20 clusters of 10", together, "paired t", 0.035, 0.075),
        ("a test that ignores the clusters", together, "naive", 0.2, 0.4),
    ):
        rate, n = rejected(runs, test), len(runs)
        half = 1.96 * math.sqrt(rate * (1 - rate) / n)
        wanted = "0.05" if test != "naive" else "0.27 to 0.30: why clusters count"
        told.append(
            Finding(
                f"the same layer twice, called a difference: {name}",
                wanted,
                rate,
                least <= rate <= most,
                rate - half,
                rate + half,
                n=n,
            )
        )
    power, formula = (
        rejected(same_twice(1, 0.0, 0.05, seed=1), "paired t"),
        statistics.power_paired(0.05, statistics.DISCORDANCE, N),
    )
    half = 1.96 * math.sqrt(power * (1 - power) / RUNS)
    told.append(
        Finding(
            "power at +5 points, 200 items, a fifth of them differing",
            f"{formula:.3f}",
            power,
            abs(power - formula) < 0.03,
            power - half,
            power + half,
            n=RUNS,
        )
    )
    return (*told, *judged(), *calibrated(), *shares(), steady())


def judged() -> tuple[Finding, ...]:
    """A judge who likes length between answers of known quality: raw and length-controlled win rates."""
    told = []
    for quality, gap in ((0.35, 30.0), (-0.5, 60.0)):
        rng, n = np.random.default_rng(3), 800
        longer = rng.normal(gap, 60, n)
        wins = (rng.random(n) < special.expit(quality + 1.2 * np.tanh(longer / longer.std()))).astype(float)
        found = win_rates.win_rate(wins, longer, np.zeros(n), range(n), seed=0, draws=100)
        truth = float(special.expit(quality))
        assert found.low is not None
        assert found.high is not None
        closer = abs(found.controlled - truth) < abs(found.raw - truth)
        told.append(
            Finding(
                f"length-controlled win rate under a judge of length (raw {found.raw:.3f})",
                f"{truth:.3f}",
                found.controlled,
                found.low <= truth <= found.high and closer,
                found.low,
                found.high,
                n=n,
            )
        )
    return tuple(told)


def calibrated(runs: int = 200) -> tuple[Finding, ...]:
    """A perfect model's ECE at n = 300, and how often its null calls it miscalibrated."""
    rng, called, seen = np.random.default_rng(1), 0, []
    for run in range(runs):
        c = rng.beta(2, 1, 300)
        found = profile.calibration(c, (rng.random(300) < c).astype(float), seed=run, draws=100)
        called += found.p < 0.05
        seen.append(found.ece - found.expected)
    rate, bias = called / runs, float(np.mean(seen))
    half = 1.96 * math.sqrt(rate * (1 - rate) / runs)
    return (
        Finding(
            "a perfectly calibrated model of 300 answers is called miscalibrated",
            "0.05",
            rate,
            0.02 <= rate <= 0.08,
            rate - half,
            rate + half,
            n=runs,
        ),
        Finding("its ECE minus the null's mean (its ECE is not 0)", "0", bias, abs(bias) < 0.005, n=runs),
    )


def shares(runs: int = 40) -> tuple[Finding, ...]:
    """Shapley values sum to the whole; a layer that does nothing covers zero."""
    found = items()
    whole = attribute(planted(found, additive, wobble=0.1), found, GAME, NAMES, name="x", draws=100)
    rest = abs(sum(e.value for e in whole.shapley) - of(whole.total, "everything").value)
    covered, few = 0, items(60)
    for seed in range(runs):
        rows = planted(few, lambda on: 0.5, seed, wobble=0.2)
        effect = of(attribute(rows, few, GAME, NAMES, name="x", draws=100).shapley, "policy")
        covered += (effect.low or 0) <= 0 <= (effect.high or 0)
    share = covered / runs
    return (
        Finding("Shapley values minus the whole effect", "0", rest, rest < 1e-12),
        # 40 runs: a standard error of 3.4 points
        Finding("a layer that does nothing: intervals that cover 0", "0.95", share, share >= 0.85, n=runs),
    )


def steady() -> Finding:
    """Rewordings that change nothing: every answer of a group is the same, so no group flips."""
    wordings, rng = ("plain", "same again"), np.random.default_rng(0)
    groups = [(f"g{n}", float(rng.random() < 0.6)) for n in range(50)]
    found = [
        (
            Item(
                f"{g}-{w}",
                (Message("user", "?"),),
                "exact",
                {"answers": ["x"]},
                "stability",
                g,
                None,
                (f"same:{g}", f"wording:{w}"),
            ),
            value,
        )
        for g, value in groups
        for w in wordings
    ]
    (told,) = profile.robustness(PairedTable([row(i, v) for i, v in found], [i for i, _ in found]), "v")
    assert told.flip_rate is not None
    return Finding(
        "flip rate of the identity perturbation",
        "0",
        told.flip_rate,
        told.flip_rate == 0.0,
        told.flip_low,
        told.flip_high,
        n=50,
    )


def test_the_harness_errs_as_often_as_it_says() -> None:
    assert failed(findings()) == []
