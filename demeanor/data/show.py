"""What training will see: rows with their trained tokens coloured, and how much of the data carries loss.

In: trees and a tokenizer. Out: rich Text (its `.plain` is the text) and counts. Nothing is trained or changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from demeanor.data.coverage import coverage
from demeanor.data.trees import Tree
from demeanor.errors import DataError
from demeanor.text.tokenizer import Tokenizer

TRAINED, CONTEXT = "bold green", "dim"


def show(trees: Sequence[Tree], tokenizer: Tokenizer, *, count: int = 2) -> Text:
    """The coverage, then the first trees: prompts dim, each branch on a line of its own, trained tokens coloured.

    Raises DataError if no token of any tree carries loss.
    """
    found = coverage(trees)
    if not found.trained:
        raise DataError(f"none of {found.rows} rows has a token that carries loss; training would change nothing")
    text = Text(f"{found}\n")
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
