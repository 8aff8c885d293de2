"""TODO."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from rich.text import Text

from demeanor.core import registry
from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.core.types import Example, TrainingRow
from demeanor.data import sources
from demeanor.data.batches import Coverage, coverage
from demeanor.data.preview import disagreements, longest, show
from demeanor.data.rows import Want
from demeanor.model import checkpoints
from demeanor.stack.schema import Import, Remote, Source, Stage
from demeanor.stack.stack import OBJECTIVES, Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.chat_templates import JinjaTemplate, load_template
from demeanor.train import pipeline
from demeanor.train.runs import Runs, import_folder

CHECKED = 200
"""Rows whose prompt is compared with what serving sends."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """One stage's data: what it holds, some of its rows, its longest ones, how many exceed `limit` tokens, and how prompts are served."""

    stage: str
    rows: Text
    coverage: Coverage
    longest: Sequence[tuple[int, str]]
    limit: int
    too_long: int
    checked: int
    disagreements: Sequence[str]


def inspect(stack: Stack, runs: Runs, name: str, *, count: int) -> Inspection:
    """Read and render a stage's rows as training would; raises CheckpointError if the base has no tokenizer yet."""
    stage = stack.stage(name)
    if not isinstance(stage, Stage):
        raise DemeanorError(
            f"{name}: is imported or merged and trains on no rows; name a stage that is trained"
        )
    folder = _tokenizer_folder(stack, runs)
    tokenizer = tokenizers.load(folder)
    template = load_template(stack.spec.template, tokenizer, folder=folder, root=stack.root)
    base = stack.spec.weights.base
    assert not isinstance(base, Remote), "a remote base has no stages"
    context = checkpoints.checkpoint_info(folder).context if isinstance(base, Import) else base.model.context
    limit = stage.max_tokens or context
    wants = registry.entry(OBJECTIVES, stack.objective_kind(name)).ROWS
    with tempfile.TemporaryDirectory() as spool:
        trees = pipeline.stage_trees(stack, stage, template, tokenizer, context, Path(spool))
    render = partial(pipeline.render, template, tokenizer, wants)
    rows = [
        row
        for source in stage.data
        for row in islice(_rows(stack, source, wants), CHECKED // len(stage.data) or 1)
    ]
    pairs = [(row, render(row)) for row in rows if not (isinstance(row, Example) and row.text is not None)]
    serve = load_template(stack.template, tokenizer, folder=folder, root=stack.root)
    other = JinjaTemplate(
        f"{serve.name}.jinja", tokenizer, serve.jinja
    )  # what is saved beside the weights for other servers
    differ = [
        *disagreements(pairs, serve),
        *(f"{other.name}: {x}" for x in disagreements(pairs, other)),
    ]
    return Inspection(
        name,
        show(trees, tokenizer, count=count),
        coverage(trees),
        longest(trees),
        limit,
        sum(tree.longest > limit for tree in trees),
        len(pairs),
        differ,
    )


def _rows(stack: Stack, source: Source, wants: Want) -> Sequence[TrainingRow]:
    return sources.rows(source, root=stack.root, want=wants, say=lambda said: None)


def _tokenizer_folder(stack: Stack, runs: Runs) -> Path:
    """Where the base's tokenizer lies: every stage has the same."""
    base = stack.spec.weights.base
    if isinstance(base, Import):
        return import_folder(stack, base.path)
    key = stack.stage_key("base")
    for folder in (runs.model(key), runs.folder(key) / "tokenizer"):
        if folder.is_dir():
            return folder
    raise CheckpointError(
        f"{stack.path}: its base has no tokenizer yet, which comes with training. "
        f"Run: demeanor train {stack.path} --only base"
    )
