"""The cost model's loss in closed form, its labels from a data row to a trained sign, and rows that have none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from demeanor.core.errors import DataError
from demeanor.core.types import Message, Preference
from demeanor.data import preview, sources
from demeanor.data.batches import stored
from demeanor.data.rows import parse
from demeanor.data.trees import Branch, Tree, collate, preference_tree, unpaired_tree
from demeanor.model import checkpoints
from demeanor.model.heads import reward_outputs
from demeanor.model.tensors import UNLABELLED, Loss, Outputs
from demeanor.objectives.cost import CostModelSpec, cost
from demeanor.stack.schema import ModelShape, Source
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template
from demeanor.text.tokenizer import Tokenizer
from tests.conftest import each

BRANCH = Branch((3, 4), (True, True))


def tree(ranks: tuple[int, ...] = (0, 1), labels: tuple[int, ...] = ()) -> Tree:
    return Tree((1, 2), (BRANCH,) * len(ranks), ranks, labels=labels)


def measured(trees: list[Tree], costs: list[float], **settings: float) -> tuple[Loss, torch.Tensor]:
    leaf = torch.tensor(costs, dtype=torch.float64, requires_grad=True)
    loss = cost(CostModelSpec(**settings), Outputs(rewards_B=leaf), collate(trees, read_last=True))
    (slope,) = torch.autograd.grad(loss.total, leaf)
    return Loss(loss.total.detach(), loss.count, loss.metrics), slope


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def value(loss: Loss, name: str) -> float:
    total, count = loss.metrics[name]
    return float(total / count)


# ---- closed forms


@pytest.mark.parametrize(("safe", "harmful"), [(-0.7, 1.1), (0.4, -0.3)])
def test_a_pair_with_labels_pays_for_its_order_and_for_both_signs(safe: float, harmful: float) -> None:
    """-log sigma(C_l - C_w) - log sigma(-C_w) - log sigma(C_l), with -log sigma(x) = log(1 + e^-x)."""
    loss, _ = measured([tree(labels=(1, 0))], [safe, harmful])
    wanted = softplus(-(harmful - safe)) + softplus(safe) + softplus(-harmful)
    assert float(loss.total) == pytest.approx(wanted, abs=1e-12)
    assert float(loss.count) == 1


@pytest.mark.parametrize("labels", [(1, 1), (0, 0)])
def test_two_answers_on_one_side_are_still_ordered(labels: tuple[int, int]) -> None:
    sign = 1 if labels[0] == 0 else -1
    loss, _ = measured([tree(labels=labels)], [0.2, 0.9])
    assert float(loss.total) == pytest.approx(
        softplus(-0.7) + softplus(-sign * 0.2) + softplus(-sign * 0.9), abs=1e-12
    )


def test_sign_weighs_the_labels_and_0_leaves_the_order_alone() -> None:
    half, _ = measured([tree(labels=(1, 0))], [-0.7, 1.1], sign=0.5)
    assert float(half.total) == pytest.approx(
        softplus(-1.8) + 0.5 * (softplus(-0.7) + softplus(-1.1)), abs=1e-12
    )
    none, _ = measured([tree(labels=(1, 0))], [-0.7, 1.1], sign=0.0)
    assert float(none.total) == pytest.approx(softplus(-1.8), abs=1e-12)


def test_what_is_not_labelled_trains_by_its_order_alone() -> None:
    plain, slope = measured([tree()], [0.3, 0.8])
    half, half_slope = measured([tree(labels=(UNLABELLED, 0))], [0.3, 0.8])
    assert float(plain.total) == pytest.approx(softplus(-0.5), abs=1e-12)
    assert float(half.total) == pytest.approx(softplus(-0.5) + softplus(-0.8), abs=1e-12)
    assert slope[0] == half_slope[0]
    assert value(half, "labelled") == 0.5
    assert value(plain, "labelled") == 0.0


def test_rows_with_and_without_labels_stand_in_one_batch() -> None:
    both, _ = measured([tree(), tree(labels=(1, 0))], [0.3, 0.8, -0.7, 1.1])
    apart = [measured([tree()], [0.3, 0.8])[0], measured([tree(labels=(1, 0))], [-0.7, 1.1])[0]]
    assert float(both.total) == pytest.approx(sum(float(x.total) for x in apart), abs=1e-12)
    assert float(both.count) == 2


def test_the_border_is_where_labels_put_it_and_not_where_the_order_does() -> None:
    """Shifting all costs leaves the pair term as it is; the label terms have one minimum.

    Of one safe and one harmful answer it is symmetric: at C = -c and c."""
    steps = [measured([tree(labels=(1, 0))], [-1 + shift, 1 + shift])[1].sum() for shift in (-0.5, 0.0, 0.5)]
    assert steps[0] < 0 < steps[2]
    assert float(steps[1]) == pytest.approx(0.0, abs=1e-12)
    assert float(measured([tree()], [-0.5, 1.5])[1].sum()) == pytest.approx(0.0, abs=1e-12)


def test_a_ranking_is_the_mean_of_its_pairs() -> None:
    whole, _ = measured([tree((0, 1, 2), (1, 1, 0))], [-1.0, 0.3, 0.8])
    costs, labels = [-1.0, 0.3, 0.8], (1, 1, 0)
    pairs = [
        float(measured([tree(labels=(labels[a], labels[b]))], [costs[a], costs[b]])[0].total)
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]
    assert float(whole.total) == pytest.approx(sum(pairs) / 3, abs=1e-12)


def test_metrics_are_what_their_names_say() -> None:
    loss, _ = measured([tree(labels=(1, 0)), tree(labels=(1, 0))], [-0.5, 1.0, 0.25, 0.0])
    assert value(loss, "accuracy") == 0.5
    assert value(loss, "sign_accuracy") == 0.5  # of the second row both are on the wrong side: 0 is no side
    assert value(loss, "margin") == pytest.approx((1.5 - 0.25) / 2)
    assert value(loss, "mean_cost") == pytest.approx(0.75 / 4)


# ---- from a row to a trained sign


def row(**more: Any) -> dict[str, Any]:
    return {"prompt": "How?", "chosen": "No.", "rejected": "So.", **more}


def test_a_row_says_of_each_completion_whether_it_is_safe() -> None:
    found = parse(row(safe=[True, False]), "preferences", "r")
    assert isinstance(found, Preference)
    assert found.safe == (True, False)
    ranking = {"prompt": "How?", "completions": ["a", "b", "c"], "ranks": [0, 1, 1], "safe": "[1, null, 0]"}
    several = parse(ranking, "preferences", "r")
    assert isinstance(several, Preference)
    assert several.safe == (True, None, False)
    plain = parse(row(), "preferences", "r")
    assert isinstance(plain, Preference)
    assert plain.safe == ()


@pytest.mark.parametrize(
    ("safe", "told"),
    [
        ([True], r"safe: got 1 values, wanted 2"),
        (["maybe", True], r"safe\[0\]: got 'maybe', wanted true or false"),
        ("yes", "safe"),
    ],
)
def test_a_label_that_cannot_be_read_is_named(safe: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(row(safe=safe), "preferences", "r")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    from demeanor.stack.schema import TokenizerSpec

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(["How do I do it? No. So do it."] * 20, TokenizerSpec(vocab_size=300)).save(folder)
    return tokenizers.load(folder)


def pair(safe: tuple[bool | None, ...] = (True, None)) -> Preference:
    answers = ((Message("assistant", "No."),), (Message("assistant", "So do it."),))
    return Preference((Message("user", "How?"),), answers, (0, 1), source="r", safe=safe)


def test_labels_reach_the_batch_also_through_a_file_and_a_preview(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    template = load_template("turns", tokenizer, folder=None, root=tmp_path)
    found = preference_tree(pair(), template)
    assert found.labels == (1, UNLABELLED)
    (kept,) = stored([found], tmp_path)
    assert kept == found
    label_B = collate([kept], read_last=True).label_B
    assert label_B is not None
    assert label_B.tolist() == [1, UNLABELLED]
    text = preview.show([found], tokenizer).plain
    assert "[0, safe]" in text
    assert "[1]" in text


def test_objectives_of_labels_count_a_comparison_by_its_order_as_before(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    template = load_template("turns", tokenizer, folder=None, root=tmp_path)
    assert unpaired_tree(pair((False, True)), template).labels == (1, 0)


def test_a_file_of_rows_with_a_wrong_label_says_where(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row(safe=s)) for s in ([True, False], [True])))
    with pytest.raises(DataError, match=r"pairs\.jsonl:2.*safe: got 1 values, wanted 2"):
        sources.rows(Source(source="pairs.jsonl"), root=tmp_path, want="preferences")


def test_training_on_labels_puts_harmful_answers_above_0_and_safe_ones_below() -> None:
    """Planted: an answer is harmful if it holds token 7; both of a pair may be, and the order alone could not tell."""
    shape = ModelShape(layers=1, width=16, heads=2, context=32)
    model = checkpoints.reward_from(checkpoints.create(shape, 16, 0), 0)
    generator = torch.Generator().manual_seed(0)

    def branch(harmful: bool) -> Branch:
        tokens = torch.randint(8, 16, (4,), generator=generator).tolist()
        return Branch((*tokens, 7 if harmful else 6, 2), (True,) * 6)

    kinds = [(False, True), (False, False), (True, True)] * 8
    trees = [Tree((1,), (branch(a), branch(b)), (0, 1), labels=(int(not a), int(not b))) for a, b in kinds]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batch = collate(trees, read_last=True)
    for _ in range(40):
        loss = cost(CostModelSpec(), reward_outputs(model, batch), batch)
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        optimizer.step()
    unseen = [
        (harmful, collate([Tree((1,), (branch(harmful),), (0,))], read_last=True))
        for harmful in (True, False) * 8
    ]
    with torch.no_grad():
        costs = [(harmful, float(model.rewards(b)[0])) for harmful, b in unseen]
    assert all((c > 0) == harmful for harmful, c in each(costs))
