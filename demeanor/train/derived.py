"""Stages that are made without training: weights imported from elsewhere, averages, roundings.

In: a Stack and the folder of runs. Out: `runs/<stage key>/model`, a whole Hugging Face folder in fp32 with the stack's tokenizer
and chat template, so that nothing after it sees a difference. An imported model that reads text in other tokens is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers as hf

from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints, quantize
from demeanor.model.merge import merge
from demeanor.stack.schema import ImportStage, MergeStage, QuantiseStage
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.tokenizer import Tokenizer
from demeanor.train.runs import Runs, import_folder, weights_folder

PROBE = 'Ahoy, Bürger 12! The  ferry\tto Corkel 港 leaves at 07:45.\n\n{"a": [1, 2.5]}'
"""A text on which two tokenizers with one vocabulary but other merges or rules are likely to part."""

Copy = Callable[[Tokenizer, Path], object]


def make(
    stack: Stack,
    runs: Runs,
    stage: ImportStage | MergeStage | QuantiseStage,
    *,
    record: Mapping[str, Any],
    copy: Copy,
) -> Path:
    """Make the folder of an imported, merged or rounded stage, unless it is there; `copy` writes a tokenizer and chat template into it."""
    key = stack.stage_key(stage.name)
    if runs.complete(key):
        return runs.model(key)
    fill, tokenizer = (
        _import(stack, runs, stage)
        if isinstance(stage, ImportStage)
        else _merge(stack, runs, stage)
        if isinstance(stage, MergeStage)
        else _round(stack, runs, stage)
    )
    with runs.begin(key, record):
        part = runs.part(key)
        fill(part)
        copy(tokenizer, part)
        return runs.finish(key)


def _import(stack: Stack, runs: Runs, stage: ImportStage) -> tuple[Callable[[Path], None], Tokenizer]:
    source, ours = import_folder(stack, stage.path), tokenizers.load(weights_folder(stack, runs, "base"))
    found = checkpoints.checkpoint_info(source)
    if found.reward != stage.reward:
        raise CheckpointError(
            f"{stage.name}: {source} holds a {'reward model' if found.reward else 'policy'}; "
            f"say `reward: {str(found.reward).lower()}` in the stage"
        )
    if (source / "tokenizer.json").is_file():
        problem = difference(weights_folder(stack, runs, "base"), source)
        if problem:
            raise CheckpointError(
                f"{stage.name}: the tokenizer of {source} is not the base's: {problem}; "
                "wanted a model trained from this base, or make it the base of a stack of its own"
            )

    if found.vocab_size < ours.vocab_size:
        raise CheckpointError(
            f"{stage.name}: {source} embeds {found.vocab_size} tokens, the base's tokenizer writes {ours.vocab_size}; "
            "wanted a model trained from this base"
        )

    def fill(part: Path) -> None:
        model = checkpoints.reward(source, 0) if stage.reward else checkpoints.policy(source)
        checkpoints.save_checkpoint(model, part)

    return fill, ours


def _merge(stack: Stack, runs: Runs, stage: MergeStage) -> tuple[Callable[[Path], None], Tokenizer]:
    sources = [weights_folder(stack, runs, name) for name in stage.of]
    weights = stage.weights or (1 / len(sources),) * len(sources)
    origin = weights_folder(stack, runs, stack.origin(stage)) if stage.method == "task_arithmetic" else None
    return lambda part: merge(sources, weights, part, method=stage.method, origin=origin), tokenizers.load(
        sources[-1]
    )


def _round(stack: Stack, runs: Runs, stage: QuantiseStage) -> tuple[Callable[[Path], None], Tokenizer]:
    parent = weights_folder(stack, runs, stack.parent(stage.name))
    return partial(quantize.write, parent, kind=stage.format), tokenizers.load(parent)


def difference(ours: Path, theirs: Path) -> str | None:
    """Where two folders' tokenizers part, in words: a token with another number, or another reading of a probe text."""
    a, b = (hf.Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (ours, theirs))
    one, other = a.get_vocab(), b.get_vocab()
    if one != other:
        token = min(
            (t for t in one.keys() | other.keys() if one.get(t) != other.get(t)),
            key=lambda t: (one.get(t, other.get(t)), t),
        )
        return f"token {token!r} is {other.get(token, 'absent')} there and {one.get(token, 'absent')} here"
    read, reads = (x.encode(PROBE, add_special_tokens=False).ids for x in (a, b))
    return (
        None if read == reads else f"it reads {PROBE[:20]!r}... as {reads[:6]}..., the base as {read[:6]}..."
    )
