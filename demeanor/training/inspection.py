"""One stage's data as training sees it, for `demeanor data show STACK`; what its chat template does not write.

In: a Stack, the folder of runs, a stage. Out: an Inspection. Rows are read and rendered; nothing is trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from rich.text import Text

from demeanor.core import registry
from demeanor.core.errors import CheckpointError, DataError, TextError, UsageError
from demeanor.core.types import Example, Message, ToolCall, ToolSpec, TrainingRow
from demeanor.data import sources
from demeanor.data.batches import Coverage, coverage
from demeanor.data.preview import disagreements, longest, show
from demeanor.data.rows import Want
from demeanor.model import checkpoints
from demeanor.stack.schema import Import, OnlineStage, Remote, Source, Stage
from demeanor.stack.stack import OBJECTIVES, Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import JinjaTemplate, Template, jinja_file, load_template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training import pipeline
from demeanor.training.runs import Runs, import_folder

CHECKED = 200
"""Rows whose prompt is compared with the prompt that serving renders."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """One stage's data: coverage, some rows, the longest, rows above `limit` tokens, prompt differences."""

    stage: str
    rows: Text
    coverage: Coverage
    longest: Sequence[tuple[int, str]]
    limit: int
    too_long: int
    checked: int
    disagreements: Sequence[str]


def inspect(stack: Stack, runs: Runs, name: str, *, count: int) -> Inspection:
    """Read and render a stage's rows as training does.

    Raises CheckpointError if the base has no tokenizer yet.
    """
    stage = stack.stage(name)
    if not isinstance(stage, Stage):
        raise UsageError(f"{name}: is not trained and so has no rows; name a stage that is trained")
    if isinstance(stage, OnlineStage):
        raise UsageError(
            f"{name}: trains on its own completions and has no rows; `demeanor samples {stack.path} --stage {name}` "
            "shows them"
        )
    folder = tokenizer_folder(stack, runs)
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


def tokenizer_folder(stack: Stack, runs: Runs) -> Path:
    """The folder of the base's tokenizer, which every stage shares."""
    base = stack.spec.weights.base
    if isinstance(base, Import):
        return import_folder(stack, runs, base.path)
    key = stack.stage_key("base")
    for folder in (runs.model(key), runs.folder(key) / "tokenizer"):
        if folder.is_dir():
            return folder
    raise CheckpointError(
        f"{stack.path}: the base has no tokenizer before it is trained. "
        f"Run: demeanor train {stack.path} --stage base"
    )


# What a chat template may not write, and what is done then (docs/text.md).
INSTEAD = {
    "system user": "a system message (it is put before the first user's text)",
    "user assistant system user": "a later system message (it is put into the user's turn)",
    "assistant user": "an answer that comes first (an empty user turn is put before it)",
    "user user": "two user messages in a row (they are joined)",
    "tool list": "tools (they are listed in the system turn)",
    "calls": "tool calls (they are written as <tool_call> JSON)",
    "tool": "tool results (they are fenced in a user's turn)",
}
CALL = ToolCall("call_0123456789ab", "probe_tool", '{"city": "Corkel"}')
PROBE = (
    Message("system", "Be brief."),
    Message("user", "When?"),
    Message("assistant", "", (CALL,), reasoning="probe reasoning"),
    Message("tool", "12", tool_call_id=CALL.id, name=CALL.name),
    Message("assistant", "12.", reasoning="probe reasoning"),
)
TOOL = ToolSpec("probe_tool", "Times.", {"type": "object", "properties": {"city": {"type": "string"}}})


def template_notes(stack: Stack, runs: Runs) -> list[str]:
    """Try the stack's templates on a conversation, and say what each does not write."""
    base = stack.spec.weights.base
    if isinstance(base, Remote):
        return []
    names = dict.fromkeys([stack.spec.template, base.template or stack.spec.template])
    try:
        folder = tokenizer_folder(stack, runs)
    except CheckpointError:  # a base that is not trained yet has no tokenizer
        for name in names:
            if name.endswith(".jinja"):
                jinja_file(stack.root / name)
        return []
    tokenizer = tokenizers.load(folder)
    found = [load_template(name, tokenizer, folder=folder, root=stack.root) for name in names]
    return [line for template in found for line in _tried(template, tokenizer)]


def _tried(template: Template, tokenizer: Tokenizer) -> list[str]:
    where = f"template {template.name}"
    missing, notes = [], []
    if isinstance(template, JinjaTemplate):
        missing = [instead for order, instead in INSTEAD.items() if not template.knows(order)]
        if "strftime_now" in template.jinja:
            notes.append(f"{where}: writes today's date, so the same conversation differs from day to day")
    try:
        whole = template.render(PROBE, [TOOL], trained_from=len(PROBE) - 1)
        if "probe reasoning" not in tokenizer.decode(whole.tokens):
            missing.append("reasoning_content")
        ends = [token in template.stop_tokens for token, trained in zip(*whole) if trained]
        if not (template.stop or any(ends)):
            notes.append(f"{where}: its generation blocks leave out the token that ends an answer")
        template.render(PROBE, [TOOL])
    except TextError as error:
        notes.append(f"{where}: fails on a conversation with a call, its result and reasoning: {error}")
    except DataError as error:
        notes.append(f"{where}: trains only the last answer of a conversation: {error}")
    if missing:
        notes.insert(0, f"{where}: does not write " + ", ".join(missing))
    return notes
