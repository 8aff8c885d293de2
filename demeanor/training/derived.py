"""Stages that are made without training: imported weights, merges of earlier stages, quantised weights.

In: a Stack and the folder of runs. Out: a function that writes the weights, and their tokenizer;
training/pipeline.py makes the folder. An imported model whose tokenizer is not the base's is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import tokenizers as hf

from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints, quantize
from demeanor.model.merge import merge
from demeanor.stack.schema import ImportStage, MergeStage, QuantiseStage
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.tokenizer import Tokenizer
from demeanor.training.runs import Runs, import_folder, weights_folder

PROBE = 'Ahoy, Bürger 12! The  ferry\tto Corkel 港 leaves at 07:45.\n\n{"a": [1, 2.5]}'
"""A text that tokenizers with the same vocabulary but other merges are likely to encode differently."""

Write = Callable[[Path], None]


def prepare(
    stack: Stack, runs: Runs, stage: ImportStage | MergeStage | QuantiseStage
) -> tuple[Write, Tokenizer]:
    """A function that writes the stage's weights into a folder, and the tokenizer that belongs to them.

    Raises CheckpointError if an imported model does not fit the stack's base.
    """
    if isinstance(stage, ImportStage):
        return _import(stack, runs, stage)
    if isinstance(stage, MergeStage):
        return _merge(stack, runs, stage)
    parent = weights_folder(stack, runs, stack.parent(stage.name))
    return partial(_quantise, parent, stage), tokenizers.load(parent)


def _quantise(parent: Path, stage: QuantiseStage, folder: Path) -> None:
    if stage.format == "int8" or stage.format == "bf16":
        quantize.write(parent, folder, stage.format)
    else:
        quantize.write_groups(
            parent, folder, stage.format, head=stage.head or "q8_0", activations=stage.activations or "int8"
        )


def _import(stack: Stack, runs: Runs, stage: ImportStage) -> tuple[Write, Tokenizer]:
    source, base = import_folder(stack, runs, stage.path), weights_folder(stack, runs, "base")
    tokenizer, found = tokenizers.load(base), checkpoints.checkpoint_info(source)
    if found.reward != stage.reward:
        raise CheckpointError(
            f"{stage.name}: {source} holds a {'reward model' if found.reward else 'policy'}; "
            f"set `reward: {str(found.reward).lower()}` in the stage"
        )
    problem = difference(base, source) if (source / "tokenizer.json").is_file() else None
    if problem:
        raise CheckpointError(
            f"{stage.name}: the tokenizer of {source} is not the base's: {problem}; "
            "wanted a model trained from this base, or make it the base of a stack of its own"
        )
    if found.vocab_size < tokenizer.vocab_size:
        raise CheckpointError(
            f"{stage.name}: {source} embeds {found.vocab_size} tokens, the base's tokenizer writes "
            f"{tokenizer.vocab_size}; wanted a model trained from this base"
        )

    def write(folder: Path) -> None:
        model = (
            checkpoints.reward(source, 0) if stage.reward else checkpoints.exported(source, keep_groups=False)
        )
        checkpoints.save_checkpoint(model, folder)

    return write, tokenizer


def _merge(stack: Stack, runs: Runs, stage: MergeStage) -> tuple[Write, Tokenizer]:
    sources = [weights_folder(stack, runs, name) for name in stage.of]
    weights = stage.weights or (1 / len(sources),) * len(sources)
    origin = weights_folder(stack, runs, stack.origin(stage)) if stage.method == "task_arithmetic" else None

    def write(folder: Path) -> None:
        merge(sources, weights, folder, method=stage.method, origin=origin)

    return write, tokenizers.load(sources[-1])


def difference(ours: Path, theirs: Path) -> str | None:
    """How the tokenizers of two folders differ, in ids or in the encoding of a probe text; None if equal."""
    here, there = (hf.Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (ours, theirs))
    ids, other_ids = here.get_vocab(), there.get_vocab()
    if ids != other_ids:
        differing = (t for t in ids.keys() | other_ids.keys() if ids.get(t) != other_ids.get(t))
        token = min(differing, key=lambda t: (ids.get(t, other_ids.get(t)), t))
        return (
            f"token {token!r} is {other_ids.get(token, 'absent')} there and {ids.get(token, 'absent')} here"
        )
    encoded, other = (x.encode(PROBE, add_special_tokens=False).ids for x in (here, there))
    if encoded == other:
        return None
    return f"it encodes {PROBE[:20]!r}... as {other[:6]}..., the base as {encoded[:6]}..."
