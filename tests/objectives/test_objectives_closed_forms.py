"""Losses at points where the answer is known on paper."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Outputs, TokenBatch

dpo, reward, sft = (registry.entry("demeanor.objectives", kind) for kind in ("dpo", "reward", "sft"))


def pairs(count: int, tokens: int = 2, branches: int = 2) -> list[Tree]:
    return [
        Tree(
            (1, 2),
            tuple(Branch((3,) * tokens, (True,) * tokens) for _ in range(branches)),
            tuple(range(branches)),
            None,
            "",
        )
        for _ in range(count)
    ]


def batch(trees: list[Tree], reference: float = -1.0) -> TokenBatch:
    return collate(trees, reference=[[reference] * sum(len(b.tokens) for b in t.branches) for t in trees])


def dpo_of(values: list[float], settings: Any) -> tuple[float, Tensor]:
    """Loss of one pair whose two tokens per branch have these log-probs, and its gradient."""
    logprobs = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    found = dpo.loss(settings, Outputs(logprobs_C=logprobs), batch(pairs(1)))
    (found.total / found.count).backward()
    assert logprobs.grad is not None
    return (found.total / found.count).item(), logprobs.grad


def test_dpo_of_equal_completions_is_log_two_and_pushes_neither_up_together() -> None:
    value, gradient = dpo_of([-1.0] * 4, dpo.Spec(beta=0.3))
    assert value == pytest.approx(math.log(2))
    assert gradient.sum() == pytest.approx(0.0)
    assert gradient[0] == pytest.approx(-0.3 / 2)


def test_dpo_at_a_known_margin() -> None:
    """h = (-1 -1) - (-2 -2) = 2 with a reference that is the same everywhere; -log sigma(0.5 * 2)."""
    value, _ = dpo_of([-1.0, -1.0, -2.0, -2.0], dpo.Spec(beta=0.5))
    assert value == pytest.approx(math.log(1 + math.exp(-1.0)))


@pytest.mark.parametrize("smoothing", [0.05, 0.1, 0.3])
def test_smoothed_dpo_is_at_rest_where_beta_h_is_the_logit_of_one_minus_e(smoothing: float) -> None:
    rest = math.log((1 - smoothing) / smoothing)

    def slope(beta_h: float) -> float:
        h = beta_h / 0.5
        return float(
            dpo_of([-1.0 + h / 2, -1.0 + h / 2, -1.0, -1.0], dpo.Spec(beta=0.5, label_smoothing=smoothing))[
                1
            ][0]
        )

    assert slope(rest) == pytest.approx(0.0, abs=1e-12)
    assert slope(rest - 0.1) < 0 < slope(rest + 0.1)


def test_the_likelihood_term_adds_the_chosen_mean_and_nothing_else() -> None:
    plain, _ = dpo_of([-1.0, -3.0, -2.0, -2.0], dpo.Spec(beta=0.5))
    value, gradient = dpo_of([-1.0, -3.0, -2.0, -2.0], dpo.Spec(beta=0.5, nll=0.7))
    _, without = dpo_of([-1.0, -3.0, -2.0, -2.0], dpo.Spec(beta=0.5))
    assert value - plain == pytest.approx(0.7 * 2.0)
    assert (gradient - without).tolist() == pytest.approx([-0.35, -0.35, 0.0, 0.0])


def test_a_ranking_of_k_is_the_mean_over_its_pairs_and_prompts_count_once() -> None:
    rewards = torch.tensor([1.5, 0.2, -0.3, -1.0, 0.7, 0.1], dtype=torch.float64)
    trees = pairs(1, branches=4) + pairs(1)
    found = reward.loss(reward.Spec(), Outputs(rewards_B=rewards), collate(trees, read_last=True))
    four = [math.log(1 + math.exp(-(rewards[i] - rewards[j]).item())) for i, j in combinations(range(4), 2)]
    two = math.log(1 + math.exp(-0.6))
    assert float(found.total) == pytest.approx(sum(four) / 6 + two)
    assert float(found.count) == 2
    assert float(found.metrics["accuracy"][0] / found.metrics["accuracy"][1]) == 1.0


def test_equal_rewards_cost_log_two_and_ties_cost_nothing() -> None:
    tied = [t._replace(ranks=(0, 0)) for t in pairs(1)]
    found = reward.loss(
        reward.Spec(), Outputs(rewards_B=torch.zeros(4)), collate(pairs(1) + tied, read_last=True)
    )
    assert (float(found.total), float(found.count)) == (pytest.approx(math.log(2)), 1.0)


def test_centring_adds_the_squared_sum_of_each_pair() -> None:
    rewards = torch.tensor([2.0, 1.0], dtype=torch.float64)
    plain, centred = (
        reward.loss(s, Outputs(rewards_B=rewards), collate(pairs(1), read_last=True))
        for s in (reward.Spec(), reward.Spec(center=0.1))
    )
    assert float(centred.total - plain.total) == pytest.approx(0.1 * 9.0)


def test_a_margin_asks_for_more() -> None:
    tree = pairs(1)[0]._replace(margin=0.5)
    found = reward.loss(
        reward.Spec(), Outputs(rewards_B=torch.tensor([1.0, 0.0])), collate([tree], read_last=True)
    )
    assert float(found.total) == pytest.approx(math.log(1 + math.exp(-0.5)), abs=1e-6)


def test_supervised_loss_of_a_uniform_model_is_log_v() -> None:
    found = sft.loss(sft.Spec(), Outputs(logprobs_C=torch.full((4,), -math.log(50))), batch(pairs(1)))
    assert float(found.total / found.count) == pytest.approx(math.log(50))
