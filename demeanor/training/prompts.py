"""Prompts of an online stage: rows or items of suites as tasks, each prompt once, some of them held out.

In: the stage's `prompts`, a template. Out: tasks to train on and tasks to measure on. It samples nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from demeanor.core.errors import DataError, Problem, unknown
from demeanor.core.types import Example, Item, Messages, TrainingRow, Unpaired, message_json, tool_json
from demeanor.data import sources
from demeanor.data.revision import RevisionPrompt
from demeanor.data.trees import Tree
from demeanor.stack.schema import OnlineStage, PromptSource
from demeanor.stack.stack import Stack, digest
from demeanor.text.template import Template
from demeanor.training import heldout
from demeanor.training.rewards import Task

MOST_HELD_OUT = 64


class Prompts(NamedTuple):
    """Tasks to train on, tasks held out, and how many prompts were too long."""

    tasks: list[Task]
    held_out: list[Task]
    too_long: int


def prompts(
    stage: OnlineStage,
    template: Template,
    *,
    root: Path,
    context: int,
    items: Callable[[str, Path], Sequence[Item]],
) -> Prompts:
    """Read and render a stage's prompts; a tenth of them, at most 200, is held out by a hash of the prompt.

    The first 64 of those are measured; the others are neither trained on nor measured.

    Raises DataError if no prompt leaves room for an answer in the context.
    """
    found: dict[tuple[tuple[int, ...], str], Task] = {}
    for source in stage.prompts:
        for task in _tasks(source, template, root, items):
            found.setdefault((task.tokens, "" if task.item is None else task.item.id), task)
    room = min(stage.max_tokens or context, context - stage.rollouts.max_tokens)
    fitting = [task for task in found.values() if len(task.tokens) <= room]
    if not fitting:
        shortest = min((len(task.tokens) for task in found.values()), default=0)
        if shortest > room == stage.max_tokens:
            advice = "raise max_tokens"
        else:
            advice = "lower rollouts.max_tokens" if shortest < context else "wanted shorter prompts"
        raise DataError(
            f"{stage.name}: prompts: none of {len(found)} leaves room for an answer of rollouts.max_tokens = "
            f"{stage.rollouts.max_tokens} in {context} tokens (the shortest prompt has {shortest}, the longest that "
            f"fits would have {room}); {advice}"
        )
    kept, held = heldout.split([Tree(task.tokens, ()) for task in fitting])
    return Prompts(
        [fitting[i] for i in kept], [fitting[i] for i in held][:MOST_HELD_OUT], len(found) - len(fitting)
    )


def problems(stack: Stack, items: Callable[[str, Path], Sequence[Item]]) -> list[Problem]:
    """Mistakes in the suites that online stages take prompts from, found before anything is trained."""
    found = []
    for i, stage in enumerate(stack.spec.weights.stages):
        for n, source in enumerate(stage.prompts if isinstance(stage, OnlineStage) else ()):
            if source.items:
                try:
                    _chosen(source, stack.root, items)
                except DataError as error:
                    where = f"{stack.path}: weights.stages[{i}].prompts[{n}]"
                    found.append(Problem(where, str(error)))
    return found


def _chosen(source: PromptSource, root: Path, items: Callable[[str, Path], Sequence[Item]]) -> list[Item]:
    """The items of a source. Raises DataError for an axis that no item has."""
    every = items(source.source, root)
    known = list(dict.fromkeys(item.axis for item in every))
    if wrong := [axis for axis in source.axes if axis not in known]:
        raise DataError(f"{source.source}: {unknown(wrong[0], known, noun='axis')}")
    return [item for item in every if not source.axes or item.axis in source.axes][: source.limit]


def _tasks(
    source: PromptSource, template: Template, root: Path, items: Callable[[str, Path], Sequence[Item]]
) -> Iterator[Task]:
    if source.items:
        for item in _chosen(source, root, items):
            tokens = template.render(item.messages, item.tools, generate=True).tokens
            yield Task(item.messages, tuple(tokens), item, item.id)
        return
    for row in sources.rows(source, root=root, want="prompts"):
        messages = asked(row)
        kwargs = row.template_kwargs
        tokens = template.render(messages, row.tools, generate=True, kwargs=kwargs).tokens
        yield Task(messages, tuple(tokens), None, row.source)


def asked(row: TrainingRow) -> Messages:
    """The messages of a row before the answer that it trains."""
    if not isinstance(row, Example):
        return row.prompt
    trained = next(
        (i for i, m in enumerate(row.messages) if i >= row.trained_from and m.role == "assistant"),
        len(row.messages),
    )
    if trained == 0:
        raise DataError(f"{row.source or 'row'}: begins with an answer; wanted a prompt before it")
    return row.messages[:trained]


def answered(row: TrainingRow) -> Messages:
    """The answer that a row holds: an example's first, or a preference's best; empty if it holds none."""
    if isinstance(row, Example):
        before = asked(row)
        return row.messages[len(before) :][:1]
    return () if isinstance(row, Unpaired) else row.completions[row.ranks.index(min(row.ranks))]


class Demonstration(NamedTuple):
    """A prompt and a person's answer to it."""

    prompt: Messages
    answer: Messages


def demonstrations(stage: OnlineStage, root: Path) -> Iterator[Demonstration]:
    """The answers that a stage's prompt rows hold: an example's first, or a preference's best."""
    for source in stage.prompts:
        if not source.items:
            for row in sources.rows(source, root=root, want="prompts", say=lambda said: None):
                if answer := answered(row):
                    yield Demonstration(asked(row), answer)


def to_revise(
    source: PromptSource, root: Path, items: Callable[[str, Path], Sequence[Item]]
) -> Iterator[RevisionPrompt]:
    """The prompts of a source for `data revise`, each with a hash of its messages and tools as id."""
    if source.items:
        chosen = _chosen(source, root, items)
        found = ((item.messages, item.tools, item.id) for item in chosen)
    else:
        rows = sources.rows(source, root=root, want="prompts")
        found = ((asked(row), row.tools, row.source) for row in rows)
    for messages, tools, name in found:
        about = [[message_json(m) for m in messages], [tool_json(t) for t in tools]]
        yield RevisionPrompt(digest(about), messages, tools, name)
