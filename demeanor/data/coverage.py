"""What carries loss, counted and said before a run: a mask that trains nothing must not look like success.

In: trees. Out: counts, one line for a person, the trees that fit; or a DataError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from demeanor.data.spool import select
from demeanor.data.trees import Tree, num_scored
from demeanor.errors import DataError
from demeanor.tensors import MISMATCHED


class Coverage(NamedTuple):
    """How much carries loss: rows, tokens a model computes, tokens that are scored, comparisons, rows with none, longest row (tokens)."""

    rows: int
    tokens: int
    trained: int
    comparisons: int
    untrained_rows: int
    longest: int

    def __str__(self) -> str:
        share = self.trained / max(1, self.tokens)
        return f"{self.rows:,} rows, {self.tokens:,} tokens, {self.trained:,} of them trained ({share:.0%}), longest row {self.longest:,}"


def coverage(trees: Iterable[Tree], *, rewards: bool = False) -> Coverage:
    """Count what carries loss; for a reward model (`rewards`) a row without a comparison carries none."""
    rows = tokens = trained = comparisons = untrained = longest = 0
    for tree in trees:
        own, pairs = num_carrying(tree), num_comparisons(tree)
        rows, tokens, trained, comparisons = (
            rows + 1,
            tokens + tree.num_tokens,
            trained + own,
            comparisons + pairs,
        )
        untrained += not (pairs if rewards else own)
        longest = max(longest, tree.longest)
    return Coverage(rows, tokens, trained, comparisons, untrained, longest)


def summary(stage: str, trees: Iterable[Tree], *, rewards: bool, left_out: int = 0, held_out: int = 0) -> str:
    """Say how much of the rows carries loss: tokens, or for a reward model comparisons of two completions.

    Raises DataError when nothing does.
    """
    found = coverage(trees, rewards=rewards)
    if not (found.comparisons if rewards else found.trained):
        what = (
            "no two completions differ in rank"
            if rewards
            else "no token carries loss; only assistant messages do"
        )
        raise DataError(f"{stage}: {what} (in {found.rows} rows, {found.tokens:,} tokens)")
    trained = (
        f"{found.comparisons:,} comparisons"
        if rewards
        else f"{found.trained:,} ({found.trained / found.tokens:.0%}) carry loss"
    )
    parts = [f"{found.rows:,} rows, {found.tokens:,} tokens, {trained}"]
    parts += [f"{found.untrained_rows:,} rows carry none"] * (found.untrained_rows > 0)
    parts += [f"{left_out:,} longer rows left out"] * (left_out > 0) + [f"{held_out:,} rows held out"] * (
        held_out > 0
    )
    return "; ".join(parts)


def num_carrying(tree: Tree) -> int:
    """Tokens of a tree that carry loss; a completion of another prompt is scored but carries none."""
    if MISMATCHED not in tree.labels:
        return num_scored(tree)
    own = [branch for branch, label in zip(tree.branches, tree.labels) if label != MISMATCHED]
    return num_scored(tree._replace(branches=tuple(own)))


def num_comparisons(tree: Tree) -> int:
    """Pairs of completions of a tree whose ranks differ."""
    return sum(a < b for a in tree.ranks for b in tree.ranks)


def within(trees: Sequence[Tree], max_tokens: int, name: str = "data") -> Sequence[Tree]:
    """Leave out trees whose longest path exceeds `max_tokens`; raises DataError if none is left."""
    kept = [i for i, tree in enumerate(trees) if tree.longest <= max_tokens]
    if not kept:
        shortest = min((tree.longest for tree in trees), default=0)
        raise DataError(
            f"{name}: none of {len(trees)} rows fits in {max_tokens} tokens (the shortest has {shortest}); "
            "raise max_tokens or the model's context"
        )
    return select(trees, kept)
