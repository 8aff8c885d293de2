"""What carries loss, counted and said before a run: a mask that trains nothing must not look like success.

In: trees. Out: one line for a person, or a DataError.
"""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.data.trees import Tree, num_scored
from demeanor.errors import DataError


def coverage(stage: str, trees: Sequence[Tree], *, rewards: bool, left_out: int = 0, held_out: int = 0) -> str:
    """Say how much of the rows carries loss: tokens, or for a reward model (`rewards`) comparisons of two completions.

    Raises DataError when nothing does.
    """
    tokens = sum(tree.num_tokens for tree in trees)
    carrying = [num_comparisons(tree) if rewards else num_scored(tree) for tree in trees]
    if not sum(carrying):
        what = "no two completions differ in rank" if rewards else "no token carries loss; only assistant messages do"
        raise DataError(f"{stage}: {what} (in {len(trees)} rows, {tokens:,} tokens)")
    trained = f"{sum(carrying):,} comparisons" if rewards else f"{sum(carrying):,} ({sum(carrying) / tokens:.0%}) carry loss"
    parts = [f"{len(trees):,} rows, {tokens:,} tokens, {trained}"]
    parts += [f"{carrying.count(0):,} rows carry none"] * (0 in carrying)
    parts += [f"{left_out:,} longer rows left out"] * (left_out > 0) + [f"{held_out:,} rows held out"] * (held_out > 0)
    return "; ".join(parts)


def num_comparisons(tree: Tree) -> int:
    """Pairs of completions of a tree whose ranks differ."""
    return sum(a < b for a in tree.ranks for b in tree.ranks)
