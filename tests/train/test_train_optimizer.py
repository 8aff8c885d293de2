"""The learning rate against its closed forms; which weights decay."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from demeanor.spec import Optim
from demeanor.train.optimizer import adamw, learning_rate
import itertools


def curve(**settings: object) -> list[float]:
    return [learning_rate(Optim(lr=2.0, **settings), step, 100) for step in range(100)]


def test_the_warm_up_climbs_linearly_from_zero_to_the_peak() -> None:
    rates = curve(warmup=0.1, schedule="constant")
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:] == [2.0] * 90


def test_the_cosine_passes_its_known_points_and_ends_at_the_final_rate() -> None:
    rates = curve(warmup=0.1, schedule="cosine", final_lr=0.1)
    assert rates[9] == 2.0
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 / 2))                       # half way: 45 of 90 steps
    assert rates[39] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2))
    assert rates[99] == pytest.approx(0.2)


def test_the_line_falls_by_the_same_amount_each_step_and_ends_at_the_final_rate() -> None:
    rates = curve(warmup=0.0, schedule="linear", final_lr=0.5)
    assert [a - b for a, b in itertools.pairwise(rates)] == pytest.approx([0.01] * 99)
    assert rates[99] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_every_rate_is_positive_and_at_most_the_peak_and_never_climbs_after_the_warm_up(schedule: str, warmup: float, steps: int) -> None:
    optim = Optim(lr=2.0, warmup=warmup, schedule=schedule)
    rates = [learning_rate(optim, step, steps) for step in range(steps)]
    assert all(0 < rate <= 2.0 for rate in rates)
    after = rates[max(0, round(warmup * steps) - 1):]
    assert all(a >= b for a, b in itertools.pairwise(after))


def test_only_matrices_decay_and_frozen_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    optimizer = adamw(model, Optim(lr=0.5, weight_decay=0.1))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * (1 - 0.5 * 0.1))  # a zero gradient leaves only the decay
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(after[name], before[name])
