"""What carries loss, counted and said before a run: a mask that trains nothing must not look like success.

In: trees. Out: one line for a person, or a DataError.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.data.trees import Tree
from demeanor.errors import DataError


def coverage(stage: str, trees: Sequence[Tree], *, rewards: bool, left_out: int, held_out: int) -> str:
    """Say how much of the rows carries loss: tokens, or for a reward model (`rewards`) comparisons of two completions.

    Raises DataError when there are no rows, or nothing in them carries loss.
    """
    if not trees:
        why = f"all {left_out} rows are longer than max_tokens" if left_out else "there are none"
        raise DataError(f"{stage}: no rows to train on: {why}")
    tokens = sum(len(tree.prompt) + sum(len(branch.tokens) for branch in tree.branches) for tree in trees)
    carrying = [num_comparisons(tree) if rewards else num_trained(tree) for tree in trees]
    if not sum(carrying):
        what = "no two completions differ in rank" if rewards else "no token carries loss; only assistant messages do"
        raise DataError(f"{stage}: {what} (in {len(trees)} rows, {tokens:,} tokens)")
    trained = f"{sum(carrying):,} comparisons" if rewards else f"{sum(carrying):,} ({sum(carrying) / tokens:.0%}) carry loss"
    parts = [f"{len(trees):,} rows, {tokens:,} tokens, {trained}"]
    parts += [f"{carrying.count(0):,} rows carry none"] * (0 in carrying)
    parts += [f"{left_out:,} longer rows left out"] * (left_out > 0) + [f"{held_out:,} rows held out"] * (held_out > 0)
    return "; ".join(parts)


def num_trained(tree: Tree) -> int:
    """Tokens of a tree that carry loss; the first token of a row has nothing before it and never does."""
    first = sum(branch.trained[0] for branch in tree.branches if branch.trained) if not tree.prompt else 0
    return sum(sum(branch.trained) for branch in tree.branches) - first


def num_comparisons(tree: Tree) -> int:
    """Pairs of completions of a tree whose ranks differ."""
    return sum(a < b for a in tree.ranks for b in tree.ranks)


def fitting(trees: Sequence[Tree], max_tokens: int) -> tuple[list[Tree], int]:
    """The trees whose longest path (prompt and one branch) has at most `max_tokens` tokens, and how many had more."""
    kept = [t for t in trees if len(t.prompt) + max((len(b.tokens) for b in t.branches), default=0) <= max_tokens]
    return kept, len(trees) - len(kept)
