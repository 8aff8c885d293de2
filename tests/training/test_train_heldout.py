"""Held-out rows never touch training; intervals against closed forms; one tree's numbers equal running it alone."""

from __future__ import annotations

import random

import pytest
import torch
from tiny_training import Tiny, loss, outputs, rows

from demeanor.core.intervals import wilson
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Loss, Outputs, Segment, TokenBatch
from demeanor.training import heldout
from demeanor.training.reference import micro_batches, trees_key


def prompted(prompt: tuple[int, ...], answer: tuple[int, ...] = (7, 8)) -> Tree:
    return Tree(prompt, (Branch(answer, (True,) * len(answer)),), (0,), None, "")


def test_a_tenth_is_held_out_and_at_most_two_hundred() -> None:
    for count, wanted in ((9, 0), (10, 1), (100, 10), (5000, 200)):
        kept, held = heldout.split([prompted((i % 250, i // 250)) for i in range(count)])
        assert len(held) == wanted
        assert sorted(kept + held) == list(range(count))


def test_the_same_rows_are_held_out_whatever_their_order() -> None:
    trees = [prompted((i, 3, 5)) for i in range(60)]
    shuffled = random.Random(1).sample(trees, len(trees))
    held = {trees[i] for i in heldout.split(trees)[1]}
    assert {shuffled[i] for i in heldout.split(shuffled)[1]} == held
    assert len(held) == 6


def test_a_prompt_never_stands_on_both_sides_even_with_another_answer() -> None:
    trees = [prompted((i % 20, 3), (i % 7, 8)) for i in range(100)]
    kept, held = heldout.split(trees)
    assert held
    assert not {trees[i].prompt for i in kept} & {trees[i].prompt for i in held}


def test_with_equal_counts_the_clustered_interval_is_that_of_a_plain_mean() -> None:
    values = torch.tensor([1.0, 4.0, 2.0, 7.0], dtype=torch.float64)
    half = heldout.Z95 * float(values.std()) / 2  # std / sqrt(4)
    assert heldout.clustered(values, torch.ones(4, dtype=torch.float64)) == pytest.approx(
        (3.5 - half, 3.5 + half)
    )
    low, high = heldout.clustered(values * 10, torch.full((4,), 10.0, dtype=torch.float64))
    assert (low, high) == pytest.approx((3.5 - half, 3.5 + half))


def test_the_clustered_interval_covers_the_truth_19_times_in_20() -> None:
    draw = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(1000):
        counts = torch.randint(1, 9, (60,), generator=draw).double()
        sums = counts * (
            2.0 + torch.randn(60, generator=draw, dtype=torch.float64)
        )  # rows differ, tokens in a row do not
        low, high = heldout.clustered(sums, counts)
        hits += low < 2.0 < high
    assert 925 <= hits <= 970


def test_intervals_report_means_and_bounds_and_count_each_tree_once() -> None:
    def one(total: float, right: float, pairs: float) -> Loss:
        value = torch.tensor
        return Loss(
            value(total),
            value(pairs),
            {"accuracy": (value(right), value(pairs)), "margin": (value(2.0), value(1.0))},
        )

    found = heldout.intervals([one(3.0, 3.0, 3.0), one(5.0, 0.0, 1.0)])
    assert (found["rows"], found["loss"], found["accuracy"], found["margin"]) == (2.0, 8 / 4, 3 / 4, 2.0)
    assert (found["accuracy/low"], found["accuracy/high"]) == wilson(1.5, 2, quantile=heldout.Z95)
    assert found["loss/low"] < 2.0 < found["loss/high"]
    assert "margin/low" not in found


def test_one_tree_of_a_batch_has_the_loss_it_has_alone() -> None:
    trees, model = rows(7), Tiny()
    batch = collate(trees)
    parts = heldout.per_tree(outputs(model, batch), batch)
    assert len(parts) == 7
    for tree, part in zip(trees, parts):
        alone = collate([tree])
        wanted, got = loss(outputs(model, alone), alone), loss(*part)
        torch.testing.assert_close(got.total, wanted.total)
        assert got.count == wanted.count
        assert part[1].num_branches == 1


def test_branches_ranks_margins_and_reference_go_with_their_tree() -> None:
    tensor = torch.tensor
    batch = TokenBatch(
        tokens_T=tensor([1, 2, 3, 4, 5, 6]),
        positions_T=tensor([0, 1, 0, 1, 0, 1]),
        segments=(Segment(0, 2), Segment(2, 4), Segment(4, 6)),
        scored_C=tensor([0, 1, 2, 4, 5]),
        targets_C=tensor([2, 9, 4, 6, 9]),
        branch_C=tensor([0, 0, 1, 2, 2]),
        last_B=tensor([1, 3, 5]),
        tree_B=tensor([0, 1, 1]),
        rank_B=tensor([0, 1, 0]),
        margin_N=tensor([0.5, 0.25]),
        reference_C=tensor([-1.0, -2, -3, -4, -5]),
    )
    (_, first), (found, second) = heldout.per_tree(
        Outputs(tensor([1.0, 2, 3, 4, 5]), tensor([10.0, 20, 30])), batch
    )
    assert first.branch_C.tolist() == [0, 0]
    assert second.branch_C.tolist() == [0, 1, 1]
    assert second.tree_B.tolist() == [0, 0]
    assert second.rank_B.tolist() == [1, 0]
    assert second.last_B.tolist() == [3, 5]
    assert second.margin_N is not None
    assert second.margin_N.tolist() == [0.25]
    assert second.reference_C is not None
    assert second.reference_C.tolist() == [-3, -4, -5]
    assert found.logprobs_C is not None
    assert found.rewards_B is not None
    assert (found.logprobs_C.tolist(), found.rewards_B.tolist()) == ([3, 4, 5], [20, 30])


def test_the_evaluator_does_not_depend_on_the_order_of_the_rows_and_none_means_none() -> None:
    trees, model = rows(12), Tiny()
    assert heldout.evaluator(outputs, loss, [], None, read_last=False) is None
    first = heldout.evaluator(outputs, loss, trees, None, read_last=False)
    second = heldout.evaluator(outputs, loss, trees[::-1], None, read_last=False)
    assert first is not None
    assert second is not None
    with torch.no_grad():
        found = first(model, 1)
        assert found == pytest.approx(second(model, 1))
        batch = collate(trees)
        whole = loss(outputs(model, batch), batch)
    assert found["loss"] == pytest.approx((whole.total / whole.count).item(), rel=1e-6)


def test_micro_batches_hold_every_tree_once_and_stay_under_the_limit() -> None:
    trees = [prompted((1,) * (i % 17)) for i in range(50)]
    groups = list(micro_batches(trees, 40))
    assert sorted(i for group in groups for i in group) == list(range(50))
    assert all(sum(trees[i].num_tokens for i in group) <= 40 for group in groups)
    assert list(micro_batches(trees[:3], 1)) == [[0], [1], [2]]
    assert list(micro_batches([], 40)) == []


def test_the_key_of_trees_sees_every_token_mask_border_and_order() -> None:
    first, second = prompted((1, 2, 3)), prompted((4,))
    keys = {
        trees_key(t)
        for t in (
            [first, second],
            [second, first],
            [first],
            [prompted((1, 2), (3, 7, 8)), second],
            [prompted((1, 2, 4)), second],
            [Tree((1, 2, 3), (Branch((7, 8), (False, True)),), (0,), None, ""), second],
        )
    }
    assert len(keys) == 6
    assert trees_key([first, second]) == trees_key([first._replace(source="elsewhere"), second])
