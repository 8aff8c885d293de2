"""What `demeanor data show` prints: rows with trained tokens colored, longest rows, prompt differences.

In: rows and token trees. Out: rich text and sentences. It reads no file and trains nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import nlargest

from rich.text import Text

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, TrainingRow, Unpaired
from demeanor.data.batches import coverage
from demeanor.data.trees import Tree
from demeanor.model.tensors import MISMATCHED, UNLABELLED
from demeanor.text.template import Template, is_trained
from demeanor.text.tokenizer import Tokenizer

TRAINED, CONTEXT = "bold green", "dim"
LABELS = {1: "desirable", 0: "undesirable", MISMATCHED: "of another prompt, no loss"}
SAFETY = {1: ", safe", 0: ", harmful", UNLABELLED: ""}


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
        marks = _marks(tree)
        for mark, branch in zip(marks, tree.branches):
            text.append(f"\n  [{mark}] " if len(tree.branches) > 1 or tree.labels else "", style="cyan")
            for tokens, trained in _runs(branch.tokens, branch.trained):
                is_trained = trained and mark != LABELS[MISMATCHED]
                text.append(tokenizer.decode(tokens), style=TRAINED if is_trained else CONTEXT)
        text.append("\n")
    return text


def _marks(tree: Tree) -> list[str]:
    """What is said of each branch: its label, its rank, or both."""
    if len(set(tree.ranks)) == 1 and tree.labels:
        return [LABELS[label] for label in tree.labels]
    said = [SAFETY[label] for label in tree.labels] or [""] * len(tree.ranks)
    return [f"{rank}{safety}" for rank, safety in zip(tree.ranks, said)]


def longest(trees: Sequence[Tree], count: int = 3) -> list[tuple[int, str]]:
    """Return (tokens, source) of the longest rows, longest first."""
    return nlargest(count, ((tree.longest, tree.source) for tree in trees))


def disagreements(rows: Iterable[tuple[TrainingRow, Tree]], serve: Template) -> list[str]:
    """List rows whose prompt differs from the tokens that the serving template gives for the same
    conversation."""
    found = []
    for row, tree in rows:
        if isinstance(row, Example):
            answered = (i for i in range(len(row.messages)) if is_trained(row.messages, i, row.trained_from))
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
        trained = isinstance(row, Example) and is_trained(shared, i, row.trained_from)
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
