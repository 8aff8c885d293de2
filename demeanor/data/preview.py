"""Preview of training data: counts which tokens carry loss, and shows rows with the trained parts marked.

In: trees or rows. Out: counts, one line of text, colored text, the trees that fit; DataError if nothing
carries loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nlargest
from typing import NamedTuple

from rich.text import Text

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, TrainingRow, Unpaired
from demeanor.data.batches import select
from demeanor.data.trees import Tree, num_scored
from demeanor.model.tensors import MISMATCHED
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer


class Coverage(NamedTuple):
    """Number of rows, computed tokens, trained tokens, comparisons, rows without loss; longest row
    (tokens)."""

    rows: int
    tokens: int
    trained: int
    comparisons: int
    untrained_rows: int
    longest: int

    def __str__(self) -> str:
        share = self.trained / max(1, self.tokens)
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens, {self.trained:,} of them trained ({share:.0%}), "
            f"longest row {self.longest:,}"
        )


def coverage(trees: Iterable[Tree], *, rewards: bool = False) -> Coverage:
    """Count what carries loss; for a reward model (`rewards`) a row without a comparison carries none."""
    rows = tokens = trained = comparisons = untrained = longest = 0
    for tree in trees:
        own, pairs = num_carrying(tree), num_comparisons(tree)
        rows += 1
        tokens += tree.num_tokens
        trained += own
        comparisons += pairs
        untrained += not (pairs if rewards else own)
        longest = max(longest, tree.longest)
    return Coverage(rows, tokens, trained, comparisons, untrained, longest)


def summary(stage: str, trees: Iterable[Tree], *, rewards: bool, left_out: int = 0, held_out: int = 0) -> str:
    """Return one line on how much carries loss: tokens, or for a reward model comparisons of two completions.

    Raises DataError if nothing does.
    """
    found = coverage(trees, rewards=rewards)
    if not (found.comparisons if rewards else found.trained):
        what = "no token carries loss; only assistant messages do"
        if rewards:
            what = "no two completions differ in rank"
        raise DataError(f"{stage}: {what} (in {found.rows} rows, {found.tokens:,} tokens)")
    trained = f"{found.trained:,} ({found.trained / found.tokens:.0%}) carry loss"
    if rewards:
        trained = f"{found.comparisons:,} comparisons"
    parts = [f"{found.rows:,} rows, {found.tokens:,} tokens, {trained}"]
    parts += [f"{found.untrained_rows:,} rows carry none"] * (found.untrained_rows > 0)
    parts += [f"{left_out:,} longer rows left out"] * (left_out > 0)
    parts += [f"{held_out:,} rows held out"] * (held_out > 0)
    return "; ".join(parts)


def num_carrying(tree: Tree) -> int:
    """Return the number of tokens that carry loss; a completion of another prompt is scored but carries
    none."""
    if MISMATCHED not in tree.labels:
        return num_scored(tree)
    own = [branch for branch, label in zip(tree.branches, tree.labels) if label != MISMATCHED]
    return num_scored(tree._replace(branches=tuple(own)))


def num_comparisons(tree: Tree) -> int:
    """Return the number of pairs of completions whose ranks differ."""
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


TRAINED, CONTEXT = "bold green", "dim"
LABELS = {1: "desirable", 0: "undesirable", MISMATCHED: "of another prompt, no loss"}


def show(trees: Sequence[Tree], tokenizer: Tokenizer, *, count: int = 2) -> Text:
    """Return the coverage and the first trees: prompts dim, one line for each branch, trained tokens colored.

    Raises DataError if no token of any tree carries loss.
    """
    found = coverage(trees)
    if not found.trained:
        raise DataError(
            f"none of {found.rows} rows has a token that carries loss; training would change nothing"
        )
    text = Text(f"{found}\n")
    for tree in trees[:count]:
        text.append(f"{tree.source or 'row'}\n", style="underline")
        text.append(tokenizer.decode(tree.prompt), style=CONTEXT)
        marks = [LABELS[label] for label in tree.labels] or [str(rank) for rank in tree.ranks]
        for mark, branch in zip(marks, tree.branches):
            text.append(f"\n  [{mark}] " if len(tree.branches) > 1 or tree.labels else "", style="cyan")
            for tokens, trained in _runs(branch.tokens, branch.trained):
                is_trained = trained and mark != LABELS[MISMATCHED]
                text.append(tokenizer.decode(tokens), style=TRAINED if is_trained else CONTEXT)
        text.append("\n")
    return text


def longest(trees: Sequence[Tree], count: int = 3) -> list[tuple[int, str]]:
    """Return (tokens, source) of the longest rows, longest first."""
    return nlargest(count, ((tree.longest, tree.source) for tree in trees))


def disagreements(rows: Iterable[tuple[TrainingRow, Tree]], serve: Template) -> list[str]:
    """List rows whose prompt differs from the tokens that the serving template gives for the same
    conversation."""
    found = []
    for row, tree in rows:
        if isinstance(row, Example):
            answered = (
                i for i, m in enumerate(row.messages) if m.role == "assistant" and i >= row.trained_from
            )
            prompt = row.messages[: next(answered, 0)]
        else:
            prompt = row.prompt
        served = serve.render(prompt, row.tools, generate=True, kwargs=row.template_kwargs).tokens
        if tuple(served) != tree.prompt:
            at = next(
                (i for i, (a, b) in enumerate(zip(served, tree.prompt)) if a != b),
                min(len(served), len(tree.prompt)),
            )
            found.append(
                f"{row.source or 'row'}: differ at token {at} of {len(tree.prompt)} (trained) "
                f"and {len(served)} (served)"
            )
    return found


def show_row(row: TrainingRow) -> Text:
    """Return a row as text without a tokenizer: its messages by role, those that will be trained colored."""
    text = Text(f"{row.source or 'row'}\n", style="underline")
    if isinstance(row, Example) and row.text is not None:
        return text.append(f"{row.text}\n", style=TRAINED)
    shared = row.messages if isinstance(row, Example) else row.prompt
    for i, message in enumerate(shared):
        trained = isinstance(row, Example) and message.role == "assistant" and i >= row.trained_from
        text.append(f"  {message.role}: ", style="cyan")
        text.append(f"{_written(message)}\n", style=TRAINED if trained else CONTEXT)
    if isinstance(row, Example):
        return text
    if isinstance(row, Unpaired):
        answers = [("desirable" if row.desirable else "undesirable", row.completion)]
    else:
        answers = [(str(rank), completion) for rank, completion in zip(row.ranks, row.completions)]
    for mark, completion in answers:
        for message in completion:
            style = TRAINED if message.role == "assistant" else CONTEXT
            text.append(f"  [{mark}] {message.role}: ", style="cyan")
            text.append(f"{_written(message)}\n", style=style)
    return text


def _written(message: Message) -> str:
    calls = [f"{call.name}({call.arguments})" for call in message.tool_calls]
    return " ".join([message.content, *calls]).strip()


def _runs(tokens: Sequence[int], trained: Sequence[bool]) -> list[tuple[list[int], bool]]:
    runs: list[tuple[list[int], bool]] = []
    for token, flag in zip(tokens, trained):
        if not runs or runs[-1][1] != flag:
            runs.append(([], flag))
        runs[-1][0].append(token)
    return runs
