"""Held-out rows: a split by content, and the objective's metrics on it with 95% intervals.

In: trees, a model, the objective as a function. Out: two lists of indices; metrics. It generates no text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from demeanor.core.intervals import wilson
from demeanor.data.trees import Tree, collate
from demeanor.model.tensors import Loss, Outputs, TokenBatch, concatenate
from demeanor.training.loop import Evaluate, ForwardFn, LossFn, running, stacked, to_device
from demeanor.training.reference import MICRO_TOKENS, micro_batches, trees_key

SHARE, MOST = 0.1, 200
Z95 = 1.959964


def split(trees: Sequence[Tree]) -> tuple[list[int], list[int]]:
    """Indices to train on and to hold out: a tenth of the rows, at most 200, chosen by a hash of the prompt.

    Rows with one prompt stay on one side, so a repeated row is never on both; order and seed do not matter.
    """
    groups: dict[str, list[int]] = {}
    for index, tree in enumerate(trees):
        only = tree._replace(branches=()) if tree.prompt else tree
        groups.setdefault(trees_key([only]), []).append(index)
    room = min(MOST, int(SHARE * len(trees)))
    held: list[int] = []
    for key in sorted(groups):
        if len(held) + len(groups[key]) <= room:
            held += groups[key]
    out = set(held)
    return [i for i in range(len(trees)) if i not in out], sorted(held)


def evaluator(
    outputs: ForwardFn,
    loss: LossFn,
    trees: Sequence[Tree],
    reference: Sequence[Sequence[float]] | None,
    *,
    read_last: bool,
    dtype: torch.dtype | None = None,
    whole_step: bool = False,
) -> Evaluate | None:
    """A function that measures the objective on held-out trees, with intervals; None without trees.

    An objective with `whole_step` gets all held-out trees at once, and no interval.
    """
    if not trees:
        return None

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        device = next(model.parameters()).device
        forward = running(model, outputs, dtype)
        ran: list[tuple[Outputs, TokenBatch]] = []
        for group in micro_batches(trees, MICRO_TOKENS):
            known = None if reference is None else [reference[i] for i in group]
            batch = to_device(
                collate([trees[i] for i in group], read_last=read_last, reference=known), device
            )
            ran.append((forward(batch), batch))
        if whole_step:
            together = loss(stacked([x for x, _ in ran]), concatenate([x for _, x in ran]))
            return {
                name: value
                for name, value in intervals([together]).items()
                if "/low" not in name and "/high" not in name
            } | {"rows": float(len(trees))}
        return intervals([loss(*part) for outcome, batch in ran for part in per_tree(outcome, batch)])

    return evaluate


def per_tree(outputs: Outputs, batch: TokenBatch) -> list[tuple[Outputs, TokenBatch]]:
    """Cut outputs and batch into one pair for each tree; model inputs stay whole."""
    found = []
    for tree in range(int(batch.tree_B.max()) + 1):
        mine_B = batch.tree_B == tree
        mine_C = mine_B[batch.branch_C]
        renamed_B = mine_B.cumsum(0) - 1
        part = batch._replace(
            scored_C=batch.scored_C[mine_C],
            targets_C=batch.targets_C[mine_C],
            branch_C=renamed_B[batch.branch_C[mine_C]],
            last_B=batch.last_B[mine_B],
            tree_B=torch.zeros_like(batch.tree_B[mine_B]),
            rank_B=batch.rank_B[mine_B],
            margin_N=None if batch.margin_N is None else batch.margin_N[tree : tree + 1],
            reference_C=None if batch.reference_C is None else batch.reference_C[mine_C],
            label_B=None if batch.label_B is None else batch.label_B[mine_B],
        )
        found.append(
            (
                Outputs(
                    None if outputs.logprobs_C is None else outputs.logprobs_C[mine_C],
                    None if outputs.rewards_B is None else outputs.rewards_B[mine_B],
                    None if outputs.collision_C is None else outputs.collision_C[mine_C],
                ),
                part,
            )
        )
    return found


def intervals(losses: Sequence[Loss]) -> dict[str, float]:
    """Means of loss and metrics over trees (one Loss each), with `/low` and `/high` for loss and accuracies.

    A mean is sum over sum. The 95% interval of the loss is normal with trees as clusters; that of an accuracy
    is Wilson's with n = trees.
    """
    names = {name for loss in losses for name in loss.metrics}
    found = {"rows": float(len(losses))}
    pairs = {"loss": [(loss.total, loss.count) for loss in losses]}
    pairs |= {name: [loss.metrics[name] for loss in losses if name in loss.metrics] for name in sorted(names)}
    for name, values in pairs.items():
        sums, counts = torch.tensor([[float(s), float(c)] for s, c in values], dtype=torch.float64).T
        if counts.sum() == 0:
            continue
        found[name] = float(sums.sum() / counts.sum())
        if int((counts > 0).sum()) > 1 and (name == "loss" or "accurac" in name):  # one row bounds nothing
            low, high = (clustered if name == "loss" else _wilson_of)(sums, counts)
            found |= {f"{name}/low": low, f"{name}/high": high}
    return found


def clustered(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """95% normal interval of sum(sums) / sum(counts), one cluster an entry.

    Source: Cochran 1977, eq. 6.13.
    """
    mean, n = sums.sum() / counts.sum(), sums.numel()
    spread = ((sums - mean * counts).square().sum() * (n / max(n - 1, 1))).sqrt() / counts.sum()
    return float(mean - Z95 * spread), float(mean + Z95 * spread)


def _wilson_of(sums: Tensor, counts: Tensor) -> tuple[float, float]:
    """Wilson's interval with n = trees, since the pairs of one tree are not independent."""
    n = int((counts > 0).sum())
    return wilson(float(sums.sum() / counts.sum()) * n, n, quantile=Z95)
