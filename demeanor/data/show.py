"""What training will see: rows with their trained tokens coloured, and how much of the data carries loss.

In: trees and a tokenizer. Out: rich Text (its `.plain` is the text) and counts. Nothing is trained or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

from demeanor.data.trees import Tree, num_scored
from demeanor.errors import DataError
from demeanor.text.tokenizer import Tokenizer

TRAINED, CONTEXT = "bold green", "dim"


class Coverage(NamedTuple):
    """How much carries loss: rows, tokens a model computes, tokens that are scored, tokens of the longest row."""

    rows: int
    tokens: int
    trained: int
    longest: int

    def __str__(self) -> str:
        share = self.trained / max(1, self.tokens)
        return f"{self.rows} rows, {self.tokens} tokens, {self.trained} of them trained ({share:.0%}), longest row {self.longest}"


def coverage(trees: Sequence[Tree]) -> Coverage:
    """Count what carries loss; raises DataError if nothing does."""
    found = Coverage(len(trees), sum(t.num_tokens for t in trees), sum(num_scored(t) for t in trees),
                     max((t.longest for t in trees), default=0))
    if not found.trained:
        raise DataError(f"none of {found.rows} rows has a token that carries loss; training would change nothing")
    return found


def within(trees: Sequence[Tree], max_tokens: int, name: str = "data") -> list[Tree]:
    """Leave out trees whose longest path exceeds `max_tokens`; raises DataError if none is left."""
    kept = [tree for tree in trees if tree.longest <= max_tokens]
    if not kept:
        shortest = min((tree.longest for tree in trees), default=0)
        raise DataError(f"{name}: none of {len(trees)} rows fits in {max_tokens} tokens (the shortest has {shortest}); "
                        "raise max_tokens or the model's context")
    return kept


def show(trees: Sequence[Tree], tokenizer: Tokenizer, *, count: int = 2) -> Text:
    """The coverage, then the first trees: prompts dim, each branch on a line of its own, trained tokens coloured.

    Raises DataError if no token of any tree carries loss.
    """
    text = Text(f"{coverage(trees)}\n")
    for tree in trees[:count]:
        text.append(f"{tree.source or 'row'}\n", style="underline")
        text.append(tokenizer.decode(tree.prompt), style=CONTEXT)
        for rank, branch in zip(tree.ranks, tree.branches):
            text.append(f"\n  [{rank}] " if len(tree.branches) > 1 else "", style="cyan")
            for tokens, trained in _runs(branch.tokens, branch.trained):
                text.append(tokenizer.decode(tokens), style=TRAINED if trained else CONTEXT)
        text.append("\n")
    return text


def _runs(tokens: Sequence[int], trained: Sequence[bool]) -> list[tuple[list[int], bool]]:
    runs: list[tuple[list[int], bool]] = []
    for token, flag in zip(tokens, trained):
        if not runs or runs[-1][1] != flag:
            runs.append(([], flag))
        runs[-1][0].append(token)
    return runs
