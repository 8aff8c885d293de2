"""C11: what DPO does to the chosen answer's own probability, to length, and what it must not depend on.

(a) The output vectors of near-duplicates are nearly one, so the direction that parts them is nearly any direction, and the chosen answer's
own probability is left to chance; DPO-positive and a likelihood term hold it. (b) If chosen answers are k tokens longer at equal quality, DPO learns length. (c) Invariants of the losses.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special

from demeanor.core import registry
from demeanor.evaluation import win_rates
from demeanor.model.tensors import Outputs
from tests.experiments.findings import Finding, failed, interval
from tests.experiments.tabular import flat, pairs, policy_loss

PACKAGE = "demeanor.objectives"
SEEDS, PAIRS, ANSWERS, WIDTH, STEPS = 6, 12, 60, 16, 150


def of(kind: str) -> Any:
    return registry.entry(PACKAGE, kind)


# ---- (a) likelihood displacement ----


def displaced(kind: str, settings: dict[str, Any], seed: int) -> tuple[float, float, float]:
    """Share of pairs whose chosen answer fell by more than 0.05 nats, its mean change (nats) and the implicit accuracy, after training."""
    drawn = torch.Generator().manual_seed(seed)
    prompts = torch.randn(PAIRS, WIDTH, generator=drawn, dtype=torch.float64)
    output = torch.randn(WIDTH, ANSWERS, generator=drawn, dtype=torch.float64) / math.sqrt(WIDTH)
    chosen = torch.arange(PAIRS)
    rejected = chosen + PAIRS
    noise = torch.randn(WIDTH, PAIRS, generator=drawn, dtype=torch.float64) / math.sqrt(WIDTH)
    output[:, rejected] = output[:, chosen] + 0.3 * noise
    rows = torch.arange(PAIRS)
    batch = pairs(
        rows * ANSWERS + chosen, rows * ANSWERS + rejected
    )  # an answer to each prompt is an arm of its own
    reference = (prompts @ output).log_softmax(1).reshape(-1)
    at = prompts.clone().requires_grad_()  # the output vectors stay, as a pretrained head nearly does
    optimiser = torch.optim.Adam([at], lr=0.05)
    objective = of(kind)
    for _ in range(STEPS):
        policy = (at @ output).log_softmax(1).reshape(-1)
        found = policy_loss(objective, objective.Spec(**settings), policy, reference)(batch)
        optimiser.zero_grad()
        (found.total / found.count).backward()
        optimiser.step()
    policy = (at @ output).detach().log_softmax(1).reshape(-1)
    moved = (policy - reference)[rows * ANSWERS + chosen]
    gap = moved - (policy - reference)[rows * ANSWERS + rejected]
    return float((moved < -0.05).double().mean()), float(moved.mean()), float((gap > 0).double().mean())


def displacement() -> tuple[Finding, ...]:
    told = []
    for name, kind, settings in (
        ("DPO", "dpo", {"beta": 0.1}),
        ("DPOP (penalty 50)", "dpop", {"beta": 0.1}),
        ("DPO + NLL (0.1)", "dpo", {"beta": 0.1, "nll": 0.1}),
    ):
        runs = [displaced(kind, settings, seed) for seed in range(SEEDS)]
        fell = interval([r[0] for r in runs])
        holds = fell[1] > 0.1 if name == "DPO" else fell[0] < 0.02
        wanted = "> 0.10" if name == "DPO" else "< 0.02"
        told.append(
            Finding(
                f"{name}: share of near-duplicate pairs whose chosen answer falls",
                wanted,
                fell[0],
                holds,
                fell[1],
                fell[2],
                n=PAIRS,
                seeds=SEEDS,
            )
        )
        right = min(r[2] for r in runs)
        told.append(
            Finding(
                f"{name}: implicit accuracy, least of the seeds",
                "1",
                right,
                right == 1.0,
                n=PAIRS,
                seeds=SEEDS,
            )
        )
    return tuple(told)


# ---- (b) length ----

LONGEST, STOP = 12, 0.2


def mean_length(kind: str, settings: dict[str, Any], longer: int, seed: int = 0) -> float:
    """Mean answer length after training on pairs whose chosen answer is `longer` tokens longer; before training it is 1 / STOP = 5."""
    drawn = torch.Generator().manual_seed(seed)
    rejected = torch.randint(1, LONGEST - 3, (40,), generator=drawn)
    lengths = torch.stack([rejected + longer, rejected], dim=1).reshape(-1)
    branch = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    last = torch.zeros(len(branch), dtype=torch.long)
    last[lengths.cumsum(0) - 1] = 1  # each token but the last one goes on: 0 goes on, 1 stops
    batch = flat(last, torch.arange(len(lengths)) // 2, torch.arange(len(lengths)) % 2, branch)
    before = torch.tensor([1 - STOP, STOP], dtype=torch.float64).log()
    batch = batch._replace(reference_C=before[last])
    logit = torch.tensor(math.log(STOP / (1 - STOP)), dtype=torch.float64, requires_grad=True)
    optimiser, objective = torch.optim.SGD([logit], lr=0.05), of(kind)
    for _ in range(40):
        both = torch.stack([torch.zeros_like(logit), logit]).log_softmax(0)
        found = objective.loss(objective.Spec(**settings), Outputs(logprobs_C=both[last]), batch)
        optimiser.zero_grad()
        (found.total / found.count).backward()
        optimiser.step()
    return 1 / float(logit.detach().sigmoid())


def length_bias() -> tuple[Finding, ...]:
    settings: dict[str, dict[str, Any]] = {
        "dpo": {"beta": 0.5},
        "ln_dpo": {"beta": 0.5},
        "simpo": {"beta": 0.5, "gamma": 0.0},
        "r_dpo": {"beta": 0.5, "alpha": 0.2},
    }
    grown = [mean_length("dpo", settings["dpo"], k) for k in (0, 1, 2, 3)]
    rising = all(a < b for a, b in pairwise(grown))
    told = [
        Finding(
            "DPO: mean length after training, chosen 3 tokens longer (5 before)",
            "> 5, growing with k = 0, 1, 2, 3",
            grown[3],
            rising and abs(grown[0] - 5) < 1e-9,
            n=40,
        )
    ]
    for kind in ("ln_dpo", "simpo", "r_dpo"):
        share = (mean_length(kind, settings[kind], 3) - 5) / (grown[3] - 5)
        told.append(Finding(f"{kind}: growth of length over DPO's", "< 1", share, share < 1, n=40))
    return (*told, controlled(grown[3]))


def controlled(length: float) -> Finding:
    """A judge who likes length, between answers of equal quality of these mean lengths: the length-controlled win rate must undo it."""
    rng, n = np.random.default_rng(0), 600
    ours, theirs = rng.geometric(1 / length, n).astype(float), rng.geometric(STOP, n).astype(float)
    longer = ours - theirs
    wins = (rng.random(n) < special.expit(1.5 * np.tanh(longer / longer.std()))).astype(float)
    found = win_rates.win_rate(wins, ours, theirs, range(n), seed=0, draws=200)
    assert found.low is not None
    assert found.high is not None
    assert found.raw_low is not None
    return Finding(
        f"length-controlled win rate of DPO's answers under a judge of length (raw {found.raw:.3f})",
        "0.5, raw above",
        found.controlled,
        found.low <= 0.5 <= found.high and found.raw_low > 0.5,
        found.low,
        found.high,
        n=n,
    )


@cache
def findings() -> tuple[Finding, ...]:
    return (*displacement(), *length_bias())


def test_dpo_lowers_chosen_answers_and_learns_length_where_its_relatives_do_not() -> None:
    assert failed(findings()) == []


# ---- (c) invariants ----

AVERAGED = {"ln_dpo": {}, "simpo": {}, "orpo": {}, "ipo": {"normalise": "mean"}, "alphapo": {}}


@pytest.mark.parametrize("kind", list(AVERAGED))
def test_a_loss_of_token_means_does_not_change_when_every_token_is_said_twice(kind: str) -> None:
    once, twice = (said(kind, AVERAGED[kind], times) for times in (1, 2))
    assert twice == pytest.approx(once, abs=1e-12)


def test_a_loss_of_sums_takes_every_token_said_twice_for_a_gap_twice_as_large() -> None:
    assert said("dpo", {"beta": 0.1}, 2) == pytest.approx(said("dpo", {"beta": 0.2}, 1), abs=1e-12)
    assert said("dpo", {"beta": 0.1}, 2) != pytest.approx(said("dpo", {"beta": 0.1}, 1), abs=1e-3)


def said(kind: str, settings: dict[str, Any], times: int) -> float:
    """The loss of one pair of 3 and 2 tokens, each token written `times` times."""
    policy = torch.tensor([-1.0, -0.4, -0.7, -1.5, -0.2], dtype=torch.float64).repeat_interleave(times)
    reference = torch.tensor([-0.9, -0.6, -0.8, -1.0, -0.3], dtype=torch.float64).repeat_interleave(times)
    branch = torch.tensor([0, 0, 0, 1, 1]).repeat_interleave(times)
    batch = flat(torch.zeros_like(branch), torch.zeros(2, dtype=torch.long), torch.tensor([0, 1]), branch)
    objective = of(kind)
    found = objective.loss(
        objective.Spec(**settings), Outputs(logprobs_C=policy), batch._replace(reference_C=reference)
    )
    return float(found.total / found.count)


@pytest.mark.parametrize("kind", ["dpo", "ln_dpo", "r_dpo", "ld_dpo", "tr_dpo"])
def test_a_pair_of_equal_answers_costs_log_two_and_moves_nothing(kind: str) -> None:
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    objective, policy = of(kind), logits.log_softmax(0)
    found = policy_loss(objective, objective.Spec(), policy, policy.detach())(pairs([1], [1]))
    (slope,) = torch.autograd.grad(found.total, logits)
    assert float(found.total.detach()) == pytest.approx(math.log(2), abs=1e-12)
    assert slope.abs().max() < 1e-12
