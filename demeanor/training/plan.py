"""The weight layers of a stack before training: their state and an estimate of what training would cost.

In: a Stack and the folder of runs. Out: one TrainingPlan a layer, as `demeanor explain` prints it. It trains
nothing; rows are read to be counted, and tokens are guessed from characters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from demeanor.core import registry
from demeanor.core.errors import CheckpointError
from demeanor.core.types import Example, Item, Messages, Preference, TrainingRow
from demeanor.data import sources
from demeanor.model import checkpoints
from demeanor.model.llama import Config
from demeanor.model.packed_size import size
from demeanor.stack.schema import (
    Import,
    ImportStage,
    MergeStage,
    ModelShape,
    OnlineStage,
    QuantiseStage,
    Remote,
    Scratch,
    Stage,
)
from demeanor.stack.stack import OBJECTIVES, Stack
from demeanor.training import memory, rounding
from demeanor.training.prompts import asked
from demeanor.training.reference import MICRO_TOKENS
from demeanor.training.runs import CHECKPOINT, LEDGER, Runs, import_folder, read_log

TYPICAL_FLOPS = 2.5e11  # training FLOP/s of two cores on small models (bf16)
DECODING_FLOPS = 3e10  # of decoding 32 answers at once there


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One weight layer: its origin, its state in words, and the tokens, minutes and memory of its training."""

    name: str
    objective: str
    parent: str
    data: str
    state: str
    tokens: float = 0
    minutes: float = 0
    memory: str = ""


def plans(stack: Stack, runs: Runs, items: Callable[[str, Path], Sequence[Item]]) -> list[TrainingPlan]:
    """Every weight layer with its state and its estimated cost, in training order; `items` reads a suite."""
    base = stack.spec.weights.base
    if isinstance(base, Remote):
        return [TrainingPlan("base", "remote", "", f"{base.model} at {base.url}", "elsewhere")]
    if isinstance(base, Import):
        folder = import_folder(stack, runs, base.path)
        parameters: float = checkpoints.num_weights(folder)
        config = _shape(folder)
        found = [TrainingPlan("base", "import", "", base.path, "trained")]
    else:
        parameters = _parameters(base.model, base.tokenizer.vocab_size)
        config = checkpoints.shape_config(base.model, base.tokenizer.vocab_size)
        minutes = _minutes(parameters, base.tokens)
        state = _state(stack, runs, "base")
        found = [TrainingPlan("base", "next token", "", _names(base), state, base.tokens, minutes)]
    for stage in stack.spec.weights.stages:
        parent, state = stack.parent(stage.name), _state(stack, runs, stage.name)
        if isinstance(stage, OnlineStage):
            kind = stack.objective_kind(stage.name)
            data, tokens, minutes = _online(stack, stage, parameters, items)
            found.append(TrainingPlan(stage.name, kind, parent, data, state, tokens, minutes))
        elif isinstance(stage, Stage):
            kind = stack.objective_kind(stage.name)
            wants = registry.entry(OBJECTIVES, kind).ROWS
            rows = (row for s in stage.data for row in sources.rows(s, root=stack.root, want=wants))
            lengths = [_guessed_tokens(row) for row in rows]
            tokens = stage.epochs * sum(lengths)
            minutes = _minutes(parameters, tokens)
            rewards = registry.entry(OBJECTIVES, kind).READS == "rewards"
            needed = "" if config is None else _memory(config, stage, lengths, head=not rewards)
            found.append(
                TrainingPlan(stage.name, kind, parent, _names(stage), state, tokens, minutes, needed)
            )
        else:
            data = _origin(stage) + _cost(runs.folder(stack.stage_key(stage.name)), stage, state)
            found.append(TrainingPlan(stage.name, stage.kind, parent, data, state))
    return found


def _shape(folder: Path) -> Config | None:
    """The shape of an imported model; None if it runs through transformers or its file has another form."""
    try:
        return Config.load(folder)
    except CheckpointError:
        return None


def _memory(config: Config, stage: Stage, lengths: Sequence[float], *, head: bool) -> str:
    """Guessed memory of the largest step, in fp32 and bf16; half of the tokens are taken to be scored."""
    longest = max(lengths, default=0.0)
    own = min(longest, stage.max_tokens or longest, config.max_position_embeddings)
    tokens = round(max(own, min(MICRO_TOKENS, stage.batch_rows * sum(lengths) / max(len(lengths), 1))))
    micro = memory.MicroBatch(tokens, tokens // 2, round(tokens * own / 2))
    rank = 0 if stage.adapter is None else stage.adapter.rank
    sizes = []
    for name, bf16 in (("fp32", False), ("bf16", True)):
        whole, again = (
            memory.estimate(config, micro, rank=rank, bf16=bf16, recompute=x, head=head)
            for x in (False, True)
        )
        chosen = stage.recompute or (stage.recompute is None and memory.exceeds(whole))
        told = f"{size(again.total)} {name}, recomputing" if chosen else f"{size(whole.total)} {name}"
        sizes.append(told + (" (too much here)" if memory.exceeds(again if chosen else whole) else ""))
    return ", ".join(sizes)


def _online(
    stack: Stack, stage: OnlineStage, parameters: float, items: Callable[[str, Path], Sequence[Item]]
) -> tuple[str, float, float]:
    """Prompts, tokens that are trained on, and minutes of an online stage whose answers have full length."""
    lengths: list[float] = []
    for source in stage.prompts:
        if source.items:
            chosen = [x for x in items(source.source, stack.root) if not source.axes or x.axis in source.axes]
            lengths += [_of_messages(item.messages) for item in chosen[: source.limit]]
        else:
            rows = sources.rows(source, root=stack.root, want="prompts", say=lambda said: None)
            lengths += [_of_messages(asked(row)) for row in rows]
    rollouts, count = stage.rollouts, max(len(lengths), 1)
    iterations = stage.steps or math.ceil(stage.epochs * count / stage.batch_rows)
    prompts = iterations * stage.batch_rows
    answers = prompts * rollouts.count * rollouts.max_tokens
    read = prompts * sum(lengths) / count
    trained = stage.inner_epochs * (read + answers)
    if stage.ptx is not None:
        rows_read = iterations * stage.inner_epochs * stage.minibatches * stage.ptx.batch_rows
        trained += rows_read * (stage.max_tokens or 128)
    sampling = 2 * parameters * answers / DECODING_FLOPS / 60
    names = ", ".join(source.source for source in stage.prompts)
    return (
        f"{names}: {iterations} x {stage.batch_rows} prompts",
        trained,
        sampling + _minutes(parameters, trained),
    )


def _names(spec: Scratch | Stage) -> str:
    return ", ".join(source.source for source in spec.data)


def _origin(stage: ImportStage | MergeStage | QuantiseStage) -> str:
    if isinstance(stage, ImportStage):
        return stage.path
    return f"{stage.method} of {', '.join(stage.of)}" if isinstance(stage, MergeStage) else stage.format


def _cost(folder: Path, stage: ImportStage | MergeStage | QuantiseStage, state: str) -> str:
    """What rounding was measured to cost, where a stage has been made."""
    log = folder / LEDGER
    if not isinstance(stage, QuantiseStage) or state != "trained" or not log.is_file():
        return ""
    return "".join(f": {rounding.short(row)}" for row in read_log(log))


def _state(stack: Stack, runs: Runs, name: str) -> str:
    key = stack.stage_key(name)
    if runs.complete(key):
        return "trained"
    return "interrupted" if (runs.folder(key) / CHECKPOINT).exists() else "to train"


def _minutes(parameters: float, tokens: float) -> float:
    """Minutes of training at 6 FLOPs a parameter and token."""
    return 6 * parameters * tokens / TYPICAL_FLOPS / 60


def _guessed_tokens(row: TrainingRow) -> float:
    """A third of the characters, and four tokens of markers for each message."""
    if isinstance(row, Example):
        if row.text is not None:
            return len(row.text) / 3
        messages = row.messages
    else:
        completions = row.completions if isinstance(row, Preference) else (row.completion,)
        messages = (*row.prompt, *(message for completion in completions for message in completion))
    return _of_messages(messages)


def _of_messages(messages: Messages) -> float:
    return sum(len(message.content) / 3 + 4 for message in messages)


def _parameters(shape: ModelShape, vocab_size: int) -> float:
    mlp = shape.mlp_width or 8 * shape.width / 3
    return shape.layers * (4 * shape.width**2 + 3 * shape.width * mlp) + vocab_size * shape.width
