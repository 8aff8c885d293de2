"""What stays the same whatever the batch, and every metric, on outputs written down by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch

aot, aot_unpaired, dpo, ld_dpo, reward, sft = (
    registry.entry("demeanor.objectives", kind)
    for kind in ("aot", "aot_unpaired", "dpo", "ld_dpo", "reward", "sft")
)

NONE = torch.zeros(0, dtype=torch.long)


def ranked(
    trees: Sequence[Sequence[int]],
    lengths: Sequence[int] | None = None,
    *,
    reference: Sequence[float] | None = None,
    margin: Sequence[float] | None = None,
) -> TokenBatch:
    """A batch of trees given by the ranks of their branches; branch b has `lengths[b]` scored tokens (1 each by default)."""
    ranks = [rank for tree in trees for rank in tree]
    sizes = list(lengths) if lengths is not None else [1] * len(ranks)
    owner = torch.tensor([b for b, size in enumerate(sizes) for _ in range(size)], dtype=torch.long)
    return TokenBatch(
        tokens_T=NONE,
        positions_T=NONE,
        segments=(),
        scored_C=torch.arange(len(owner)),
        targets_C=torch.zeros(len(owner), dtype=torch.long),
        branch_C=owner,
        last_B=torch.arange(len(ranks)),
        tree_B=torch.tensor([n for n, tree in enumerate(trees) for _ in tree]),
        rank_B=torch.tensor(ranks),
        margin_N=None if margin is None else torch.tensor(margin, dtype=torch.float64),
        reference_C=None if reference is None else torch.tensor(reference, dtype=torch.float64),
    )


def leaf(*values: float) -> torch.Tensor:
    """Numbers to differentiate with respect to, in fp64."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def reward_of(rewards: torch.Tensor, batch: TokenBatch, **settings: float) -> Loss:
    return reward.loss(reward.Spec(**settings), Outputs(rewards_B=rewards), batch)


def dpo_of(logprobs: torch.Tensor, batch: TokenBatch, **settings: float) -> Loss:
    return dpo.loss(dpo.Spec(**settings), Outputs(logprobs_C=logprobs), batch)


def metric(loss: Loss, name: str) -> float:
    total, count = loss.metrics[name]
    return float(total / count)


def test_the_loss_is_the_mean_surprise_of_the_trained_tokens() -> None:
    logprobs = leaf(math.log(0.5), math.log(0.25), math.log(1.0))
    found = sft.loss(sft.Spec(), Outputs(logprobs_C=logprobs), ranked([[0], [0]], [2, 1]))
    assert float((found.total / found.count).detach()) == pytest.approx((math.log(2) + math.log(4)) / 3)
    found.total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.0, -1.0, -1.0], "every token weighs the same, whatever row it is in"


def test_a_batch_without_trained_tokens_is_zero_of_zero() -> None:
    found = sft.loss(sft.Spec(), Outputs(logprobs_C=torch.zeros(0)), ranked([[0]], [0]))
    assert found.total.item() == 0.0
    assert float(found.count) == 0.0


def test_a_prompt_with_many_completions_weighs_as_much_as_one_with_two() -> None:
    both = reward_of(leaf(1.0, 0.0, 0.5, 2.0, -1.0), ranked([[0, 1], [0, 1, 2]]))
    alone = [
        reward_of(leaf(1.0, 0.0), ranked([[0, 1]])),
        reward_of(leaf(0.5, 2.0, -1.0), ranked([[0, 1, 2]])),
    ]
    assert both.total.item() == pytest.approx(sum(x.total.item() for x in alone), abs=1e-12)
    assert float(both.count) == 2.0


def test_prompts_without_a_pair_count_for_nothing() -> None:
    with_lonely, without = (
        reward_of(leaf(1.0, 0.0, 9.0), ranked([[0, 1], [0]])),
        reward_of(leaf(1.0, 0.0), ranked([[0, 1]])),
    )
    assert (with_lonely.total.item(), float(with_lonely.count)) == (
        without.total.item(),
        float(without.count),
    )


def test_the_loss_sees_only_differences_of_rewards_unless_it_centres_them() -> None:
    batch = ranked([[0, 1]])
    here, there = reward_of(leaf(1.0, 0.5), batch), reward_of(leaf(11.0, 10.5), batch)
    assert here.total.item() == pytest.approx(there.total.item(), abs=1e-12)
    centred = reward_of(leaf(11.0, 10.5), batch, center=0.01)
    assert (centred.total - there.total).item() == pytest.approx(0.01 * 21.5**2, abs=1e-9)


def test_a_margin_asks_for_that_much_more_and_a_missing_one_for_nothing() -> None:
    plain = reward_of(leaf(1.0, 0.5), ranked([[0, 1]]))
    asked = reward_of(leaf(1.5, 0.5), ranked([[0, 1]], margin=[0.5]))
    assert asked.total.item() == pytest.approx(plain.total.item(), abs=1e-12)
    assert metric(asked, "margin") == 1.0, "the metric is the gap itself, without what was asked for"
    unknown = reward_of(leaf(1.0, 0.5), ranked([[0, 1]], margin=[math.nan]))
    assert unknown.total.item() == plain.total.item()


def test_reward_metrics_are_means_over_pairs_and_over_completions() -> None:
    found = reward_of(leaf(2.0, 1.0, 0.0, 3.0), ranked([[0, 1], [0, 1]]))
    assert metric(found, "accuracy") == 0.5
    assert metric(found, "margin") == (1.0 - 3.0) / 2
    assert metric(found, "mean_reward") == 6.0 / 4
    assert not any(total.requires_grad for total, _ in found.metrics.values())


def test_a_policy_that_is_its_reference_pays_log_2() -> None:
    found = dpo_of(leaf(-1.0, -2.0, -3.0), ranked([[0, 1]], [2, 1], reference=[-1.0, -2.0, -3.0]), beta=0.3)
    assert (found.total / found.count).item() == pytest.approx(math.log(2), abs=1e-12)
    assert metric(found, "rewards/margins") == 0.0
    assert metric(found, "rewards/accuracies") == 0.0, "a draw is not a win"


def test_equation_7_with_summed_log_ratios() -> None:
    beta, policy, reference = 0.2, [-1.0, -0.5, -2.0], [-1.5, -0.25, -1.0]
    h = beta * (((policy[0] - reference[0]) + (policy[1] - reference[1])) - (policy[2] - reference[2]))
    logprobs = leaf(*policy)
    found = dpo_of(logprobs, ranked([[0, 1]], [2, 1], reference=reference), beta=beta)
    assert found.total.item() == pytest.approx(math.log1p(math.exp(-h)), abs=1e-12)
    found.total.backward()
    assert logprobs.grad is not None
    pull = beta / (1 + math.exp(h))
    assert logprobs.grad.tolist() == pytest.approx([-pull, -pull, pull], abs=1e-12)


def test_a_dpo_ranking_is_the_mean_of_its_pairs_and_weighs_as_one_prompt() -> None:
    values = [-1.0, -2.5, -0.5]
    found = dpo_of(leaf(*values), ranked([[0, 1, 2]], reference=[0.0] * 3), beta=0.3)
    pairs = [
        dpo_of(leaf(values[a], values[b]), ranked([[0, 1]], reference=[0.0] * 2), beta=0.3)
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert found.total.item() == pytest.approx(sum(x.total.item() for x in pairs) / 3, abs=1e-12)
    assert float(found.count) == 1.0


def test_dpo_metrics_are_means_over_pairs_under_their_usual_names() -> None:
    batch = ranked([[0, 1], [1, 0]], reference=[-1.0, -1.0, -2.0, -2.0])
    found = dpo_of(leaf(-0.5, -2.0, -1.0, -4.0), batch, beta=0.5)  # second tree: branch 3 is the better one
    assert metric(found, "logps/chosen") == (-0.5 - 4.0) / 2
    assert metric(found, "logps/rejected") == (-2.0 - 1.0) / 2
    assert metric(found, "rewards/chosen") == (0.5 * 0.5 + 0.5 * -2.0) / 2
    assert metric(found, "rewards/rejected") == (0.5 * -1.0 + 0.5 * 1.0) / 2
    assert metric(found, "rewards/margins") == metric(found, "rewards/chosen") - metric(
        found, "rewards/rejected"
    )
    assert metric(found, "rewards/accuracies") == 0.5
    assert not any(total.requires_grad for total, _ in found.metrics.values())


@pytest.mark.parametrize("module", [aot, aot_unpaired], ids=["aot", "aot_unpaired"])
def test_sorting_losses_do_not_depend_on_the_order_of_prompts_with_unequally_many_pairs(module: Any) -> None:
    """Sorted values belong to no prompt: weighing them by the prompt that stood at their place made the order of rows count."""
    trees = [([0, 1], [0.3, -1.0]), ([0, 1, 2], [2.0, 0.1, -0.4]), ([0, 1], [-0.7, 0.9])]
    found = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        ranks, values = [trees[i][0] for i in order], [v for i in order for v in trees[i][1]]
        batch = ranked(ranks, reference=[0.0] * len(values))
        loss = module.loss(module.Spec(beta=1.0), Outputs(logprobs_C=leaf(*values)), batch)
        found.append((float(loss.total.detach()), float(loss.count)))
    assert found[1] == pytest.approx(found[0], abs=1e-12)
    assert found[2] == pytest.approx(found[0], abs=1e-12)


def test_the_length_weighing_of_ld_dpo_is_as_exact_in_single_precision_late_in_a_long_batch() -> None:
    """Sums within a branch: a running sum over the whole batch lost two digits to the branches before it."""
    generator = torch.Generator().manual_seed(0)
    lengths = [int(n) for n in torch.randint(90, 111, (2048,), generator=generator)]
    values = -5 - torch.rand(sum(lengths), generator=generator, dtype=torch.float64)
    batch = ranked([[0, 1]] * 1024, lengths, reference=[0.0] * sum(lengths))

    def gradient(dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        logprobs = values.clone().to(dtype).requires_grad_()
        loss = ld_dpo.loss(ld_dpo.Spec(), Outputs(logprobs_C=logprobs), batch)
        loss.total.backward()
        assert logprobs.grad is not None
        return float(loss.total.detach()), logprobs.grad.double()

    (exact, exact_C), (single, single_C) = gradient(torch.float64), gradient(torch.float32)
    assert single == pytest.approx(exact, rel=1e-6)
    assert float((single_C - exact_C).abs().max() / exact_C.abs().max()) < 2e-4
