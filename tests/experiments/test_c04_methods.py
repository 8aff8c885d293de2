"""C4: DPO, PPO and RLOO with a learned and with the true reward, best-of-n and SFT on chosen, on a task whose gold can be enumerated.

A mini IMDb: three topics, reviews of four words, gold is a token-level sentiment. Every point is exact, so none may lie above the frontier.
`make experiments`, about 4 minutes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from demeanor.model.tensors import Outputs
from tests.experiments.charts import Series, plane, write
from tests.experiments.findings import FIGURES, Finding, failed, interval, publish
from tests.experiments.tiny_lm import (
    ANSWERS,
    Point,
    base,
    best_of,
    comparisons,
    every_answer,
    frontier,
    gold_of_all,
    height,
    learned,
    logprobs,
    offline,
    online,
    place,
    reward_model,
    rows,
    sentiment,
    true,
)

SEEDS, STEPS, COUNT, LR = 3, 80, 16, 3e-3
BETAS = (0.5, 1.0)
ABOVE = 1e-3  # nats and points of gold: the chord between two points of the curve lies this little below it


def run(seed: int) -> tuple[dict[str, dict[float, list[Point]]], list[Point]]:
    """Every policy that one seed saw: by method and setting, in the order of training; and the exact frontier."""
    start, gold = base(seed), gold_of_all()
    reference = logprobs(start)
    curve = frontier(reference, gold)
    pairs = comparisons(start, 400, seed)
    proxy = learned([reward_model(start, pairs, seed)])
    found: dict[str, dict[float, list[Point]]] = defaultdict(dict)

    def seen(method: str, setting: float) -> Any:
        found[method][setting] = []

        def probe(model: nn.Module, step: int) -> Mapping[str, float]:
            found[method][setting].append(place(logprobs(model), reference, gold))
            return {}

        return probe

    chosen = [tree._replace(branches=tree.branches[:1], ranks=(0,)) for tree in pairs]
    offline(start, "sft", chosen, lr=1e-3, epochs=3, seed=seed, probe=seen("SFT on chosen", 1.0))
    for beta in (0.1, 0.3, 1.0):
        offline(
            start,
            "dpo",
            pairs,
            lr=1e-3,
            epochs=3,
            seed=seed,
            reference=start,
            probe=seen("DPO", beta),
            beta=beta,
        )
    for beta in BETAS:
        common: dict[str, Any] = {"steps": STEPS, "count": COUNT, "lr": LR, "seed": seed, "kl_coef": beta}
        for name, score in (("learned reward", proxy), ("true reward", true())):
            online(start, "rloo", score, probe=seen(f"RLOO, {name}", beta), **common)
            online(start, "ppo", score, probe=seen(f"PPO, {name}", beta), value_init="zero", **common)
    for n in (2, 4, 16, 64):
        found["best of n by gold"][float(n)] = [best_of(reference, gold, n)]
    return dict(found), curve


@pytest.mark.experiment
def test_no_method_beats_the_exact_frontier_and_the_true_reward_is_not_beaten_by_dpo() -> None:
    runs = [run(seed) for seed in range(SEEDS)]
    above = max(
        p.gold - height(curve, p.kl)
        for found, curve in runs
        for settings in found.values()
        for points in settings.values()
        for p in points
    )
    counted = sum(
        len(points) for found, _ in runs for settings in found.values() for points in settings.values()
    )
    told = [
        Finding(
            "gold above the exact frontier, largest of all policies seen",
            "<= 0",
            above,
            above <= ABOVE,
            n=counted,
            seeds=SEEDS,
        )
    ]
    distance = {
        method: [
            float(
                np.mean([height(curve, points[-1].kl) - points[-1].gold for points in found[method].values()])
            )
            for found, curve in runs
        ]
        for method in runs[0][0]
    }
    for method, values in distance.items():
        mean, low, high = interval(values)
        told.append(
            Finding(
                f"distance below the frontier at the end: {method}",
                "smaller is better",
                mean,
                mean >= -ABOVE,
                low,
                high,
                n=len(runs[0][0][method]),
                seeds=SEEDS,
            )
        )
    for method in ("PPO, true reward", "RLOO, true reward"):
        mean, low, high = interval([a - b for a, b in zip(distance[method], distance["DPO"])])
        told.append(
            Finding(
                f"distance of {method} minus that of DPO",
                "<= 0 within noise",
                mean,
                low <= 0,
                low,
                high,
                seeds=SEEDS,
            )
        )
    for method in ("PPO, true reward", "RLOO, true reward"):
        missed = [missing(curve, found[method], beta) for found, curve in runs for beta in BETAS]
        mean, low, high = interval(missed)
        told.append(
            Finding(
                f"share of the possible gain of J = gold - beta KL that {method} misses",
                "reported: an optimum would miss 0",
                mean,
                mean >= -ABOVE,
                low,
                high,
                n=len(missed),
                seeds=SEEDS,
            )
        )
    bound = max(
        points[0].kl - (np.log(n) - (n - 1) / n)
        for found, _ in runs
        for n, points in found["best of n by gold"].items()
    )
    told.append(
        Finding(
            "KL of best-of-n minus log n - (n - 1) / n, largest",
            "<= 0, ties make it less",
            float(bound),
            bound <= 1e-9,
            n=4,
            seeds=SEEDS,
        )
    )
    found, curve = runs[0]
    series = {"exact frontier": Series([(p.kl, p.gold) for p in curve if p.kl < 6.6], joined=True)}
    series |= {
        method: Series([(p.kl, p.gold) for points in settings.values() for p in points[1:] or points])
        for method, settings in found.items()
    }
    write(
        FIGURES / "frontier.svg",
        plane(
            series,
            "KL to the reference (nats an answer)",
            "gold reward",
            "Gold reward against KL of every policy seen, below the exact frontier",
        ),
    )
    publish(
        "c04", told, points={m: {str(s): p for s, p in settings.items()} for m, settings in found.items()}
    )
    assert failed(told) == []


def missing(curve: list[Point], settings: dict[float, list[Point]], beta: float) -> float:
    """(J* - J) / (J* - J of the reference) of the last policy."""
    best = max(p.gold - beta * p.kl for p in curve)
    last, first = settings[beta][-1], curve[0]
    return (best - (last.gold - beta * last.kl)) / (best - first.gold)


def test_the_enumeration_is_the_models_own_probability_of_each_answer() -> None:
    """Every probability sums to one, and the loss of drawn rows by the trainer's forward is the table's entry."""
    from demeanor.data.trees import collate
    from demeanor.model import checkpoints
    from demeanor.model.heads import policy_outputs
    from tests.experiments.tiny_lm import PROMPTS, SHAPE, VOCABULARY

    model = checkpoints.create(SHAPE, VOCABULARY, 0)
    table = logprobs(model)
    assert table.exp().sum(1).tolist() == pytest.approx([1.0] * len(PROMPTS), abs=1e-5)
    trees = rows(20, seed=1)
    with torch.no_grad():
        found: Outputs = policy_outputs(model, collate(trees))
    assert found.logprobs_C is not None
    sums = found.logprobs_C.reshape(20, -1).sum(1)
    places = {tuple(answer): i for i, answer in enumerate(every_answer().tolist())}
    slow = [float(table[PROMPTS.index(t.prompt), places[t.branches[0].tokens]]) for t in trees]  # type: ignore[arg-type]
    assert sums.tolist() == pytest.approx(slow, abs=1e-4)
    assert len(places) == ANSWERS


def test_the_frontier_is_concave_and_best_of_n_lies_below_it() -> None:
    gold = gold_of_all()
    reference = torch.randn(
        2, ANSWERS, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).log_softmax(1)
    curve = frontier(reference, gold, points=60)
    slopes = [(b.gold - a.gold) / (b.kl - a.kl) for a, b in pairwise(curve) if b.kl - a.kl > 1e-6]
    assert len(slopes) > 30
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(slopes))
    assert sentiment((4, 10, 4, 7)) == 1 - 1 - 1
    for n in (2, 8, 32):
        point = best_of(reference, gold, n)
        assert point.gold < height(frontier(reference, gold, points=1000), point.kl)
