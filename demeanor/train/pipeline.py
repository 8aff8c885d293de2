"""Training side of the composition: every stage of a stack, from declaration to finished weights.

In: a Stack and the folder of runs. Out: `runs/<stage key>/model` for each stage; what exists is reused, what was
interrupted goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from demeanor.core import hardware, registry
from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.types import Example, TrainingRow, Unpaired
from demeanor.data import sources
from demeanor.data.batches import assemble, stored
from demeanor.data.rows import Want
from demeanor.data.trees import Tree, example_tree, mismatched, packed, preference_tree, unpaired_tree
from demeanor.model import checkpoints, quantize
from demeanor.stack import stack as stacks
from demeanor.stack.schema import (
    GenerationEvalSpec,
    Import,
    ImportStage,
    MergeStage,
    QuantiseStage,
    Remote,
    Scratch,
    Source,
    Stage,
)
from demeanor.stack.stack import OBJECTIVES, Stack, plain
from demeanor.text import tokenizer as tokenizers
from demeanor.text.chat_templates import load_template
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.train import derived, generation_eval
from demeanor.train import stage as training
from demeanor.train.parallel import join
from demeanor.train.plan import notes
from demeanor.train.progress import StageProgress
from demeanor.train.runs import Runs, import_folder, weights_folder
from demeanor.train.trackers import Begin, together


def train(
    stack: Stack,
    runs: Runs,
    *,
    only: Sequence[str] = (),
    fp32: bool = False,
    compiled: bool = False,
    recompute: bool = False,
    track: Sequence[str] = (),
    probe: int | None = None,
    services: generation_eval.GenerationServices,
) -> None:
    """Train every stage (or those in `only` and their ancestors) that has no finished weights, in order.

    `track` is as in `--track`; `probe`: let every policy without a probe of its own answer so many held-out prompts.
    """
    tracked = together(track)
    wanted = {name for o in only for name in _needed(stack, o)} or {
        "base",
        *(s.name for s in stack.spec.weights.stages),
    }
    if compiled and hardware.compiler() is None:
        raise DemeanorError(
            "--compile: no C++ compiler (g++ or clang++) on this machine; install one, or leave --compile out"
        )
    for note in notes(stack):
        print(note)
    for stage in stack.spec.weights.stages:
        if isinstance(stage, Stage) and stage.adapter is not None and stage.name in wanted:
            quantize.require(stage.adapter, stage.name)
    if "base" in wanted:
        _train_base(stack, runs, fp32, compiled, recompute, tracked)
    for stage in stack.spec.weights.stages:
        if stage.name not in wanted:
            continue
        if isinstance(stage, Stage):
            _train_stage(stack, runs, _probed(stage, probe), fp32, compiled, recompute, tracked, services)
        else:
            _make_stage(stack, runs, stage)


def _probed(stage: Stage, count: int | None) -> Stage:
    """The stage with a probe of `count` held-out prompts, if it has none and answers at all."""
    if (
        count is None
        or stage.probe is not None
        or not registry.entry(OBJECTIVES, str(stage.objective["kind"])).POLICY
    ):
        return stage
    return stage.model_copy(update={"probe": GenerationEvalSpec(count=count)})


def tolerant(stack: Stack) -> Stack:
    """The stack with every source told to skip bad rows; keys stay, as they are of what the files hold."""

    def skipping(data: Sequence[Source]) -> tuple[Source, ...]:
        return tuple(source.model_copy(update={"skip_bad": True}) for source in data)

    weights = stack.spec.weights
    base = (
        weights.base.model_copy(update={"data": skipping(weights.base.data)})
        if isinstance(weights.base, Scratch)
        else weights.base
    )
    stages = tuple(
        s.model_copy(update={"data": skipping(s.data)}) if isinstance(s, Stage) else s for s in weights.stages
    )
    return replace(
        stack,
        spec=stack.spec.model_copy(
            update={"weights": weights.model_copy(update={"base": base, "stages": stages})}
        ),
    )


def _needed(stack: Stack, name: str) -> set[str]:
    """A stage and everything its weights descend from, frozen ancestors included."""
    stage = None if name == "base" else stack.stage(name)
    watched = (
        {stage.probe.reward} if isinstance(stage, Stage) and stage.probe and stage.probe.reward else set()
    )
    return {name}.union(*(_needed(stack, ancestor) for ancestor in {*stack.needs(name).values(), *watched}))


def _train_base(
    stack: Stack, runs: Runs, fp32: bool, compiled: bool, recompute: bool, track: Begin | None
) -> None:
    base, key = stack.spec.weights.base, stack.stage_key("base")
    if isinstance(base, Import):
        StageProgress("base").say(f"imported from {import_folder(stack, base.path)}")
        return
    if isinstance(base, Remote):
        StageProgress("base").say(f"{base.model} at {base.url}: nothing to train here")
        return
    if runs.complete(key):
        StageProgress("base").say(f"trained already ({key})")
        return
    texts = _Texts(base.data, stack)
    with join().first_alone():  # under torchrun the others read what the first one wrote
        tokenizer = _tokenizer(base, texts, runs.folder(key))
    training.pretrain(
        base,
        key=key,
        documents=lambda: texts.documents(tokenizer, runs.folder(key)),
        vocab_size=tokenizer.vocab_size,
        runs=runs,
        record=_record(stack, "base", base.data),
        fp32=fp32,
        compiled=compiled,
        recompute=recompute,
        track=track,
        copy=partial(_write_tokenizer, stack, tokenizer),
    )


def _tokenizer(base: Scratch, texts: Iterable[str], folder: Path) -> Tokenizer:
    """The base's tokenizer, trained once; kept beside the run so that a resume needs no second training."""
    place = folder / "tokenizer"
    if not place.is_dir():
        part = folder / "tokenizer.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tokenizers.train(texts, base.tokenizer).save(part)
        part.rename(place)
    return tokenizers.load(place)


def _train_stage(
    stack: Stack,
    runs: Runs,
    stage: Stage,
    fp32: bool,
    compiled: bool,
    recompute: bool,
    track: Begin | None,
    services: generation_eval.GenerationServices,
) -> None:
    key = stack.stage_key(stage.name)
    if runs.complete(key):
        StageProgress(stage.name).say(f"trained already ({key})")
        return
    parent = weights_folder(stack, runs, stack.parent(stage.name))
    tokenizer = tokenizers.load(parent)
    template = load_template(stack.spec.template, tokenizer, folder=parent, root=stack.root)
    roles = {
        role: (stack.stage_key(a), weights_folder(stack, runs, a))
        for role, a in stack.roles(stage.name).items()
    }
    watching = partial(generation_eval.watching, stack, runs, stage, tokenizer, template, services=services)
    training.train_stage(
        stage,
        registry.entry(OBJECTIVES, stack.objective_kind(stage.name)),
        stack.objectives[stage.name],
        key=key,
        parent=parent,
        roles=roles,
        trees=lambda: stage_trees(stack, stage, template, tokenizer, _context(parent), runs.folder(key)),
        runs=runs,
        fp32=fp32,
        compiled=compiled,
        recompute=recompute,
        track=track,
        probe=None
        if stage.probe is None
        else watching(parent=parent, reference=roles.get("reference", ("", parent))[1]),
        record=_record(stack, stage.name, stage.data),
        copy=partial(_write_tokenizer, stack, tokenizer),
    )


def _make_stage(stack: Stack, runs: Runs, stage: ImportStage | MergeStage | QuantiseStage) -> None:
    """Import, merge or round one stage."""
    made = {"import": "imported", "merge": "merged", "quantise": "rounded"}[stage.kind]
    key = stack.stage_key(stage.name)
    ancestors = stage.of if isinstance(stage, MergeStage) else (stack.parent(stage.name),)
    origin = stage.path if isinstance(stage, ImportStage) else ", ".join(ancestors)
    if runs.complete(key):
        StageProgress(stage.name).say(f"{made} already ({key})")
        return
    StageProgress(stage.name).say(f"{made} from {origin}")
    derived.make(
        stack, runs, stage, record=_record(stack, stage.name, ()), copy=partial(_write_tokenizer, stack)
    )


def stage_trees(
    stack: Stack, stage: Stage, template: Template, tokenizer: Tokenizer, context: int, folder: Path
) -> Sequence[Tree]:
    """The rows of a stage as token trees; plain text is packed into rows. They are kept in `folder` if a source streams."""
    objective = registry.entry(OBJECTIVES, stack.objective_kind(stage.name))
    wants: Want = objective.ROWS
    found = assemble(
        stage.data,
        read=partial(_read, stack=stack, want=wants),
        render=partial(render, template, tokenizer, wants),
        document=tokenizer.document,
        folder=folder,
    )
    kept = folder if any(source.stream for source in stage.data) else None
    if wants == "unpaired" and objective.KL:
        return stored(mismatched(found.trees, stage.seed), kept)
    if not found.documents:
        return found.trees
    row_tokens = (stage.max_tokens or context) - 1
    rows = packed(found.documents, row_tokens, sum(map(len, found.documents)), stage.seed)
    return stored(chain(rows, found.trees), kept)


def render(template: Template, tokenizer: Tokenizer, wants: Want, row: TrainingRow) -> Tree:
    """One row as a token tree, as an objective wants it."""
    if isinstance(row, Example):
        return example_tree(row, template, tokenizer)
    return (
        unpaired_tree(row, template)
        if wants == "unpaired" or isinstance(row, Unpaired)
        else preference_tree(row, template)
    )


def _context(folder: Path) -> int:
    return checkpoints.checkpoint_info(folder).context


def _read(source: Source, stack: Stack, want: Want, say: sources.Say = print) -> Iterator[TrainingRow]:
    return sources.read(source, root=stack.root, want=want, say=say)


def _rows(source: Source, stack: Stack, want: Want) -> list[TrainingRow]:
    return sources.rows(source, root=stack.root, want=want)


class _Texts:
    """Documents to pretrain on: read once into memory, or anew each time where a source streams."""

    def __init__(self, data: Sequence[Source], stack: Stack) -> None:
        self._data, self._stack = data, stack
        self.streams = any(source.stream for source in data)
        self._kept = None if self.streams else list(self._read())

    def __iter__(self) -> Iterator[str]:
        return self._read() if self._kept is None else iter(self._kept)

    def documents(self, tokenizer: Tokenizer, folder: Path) -> Iterable[list[int]]:
        """Token ids of each text, weights included; in a file in `folder` where a source streams."""
        if self.streams:
            return assemble(
                self._data,
                read=partial(_read, stack=self._stack, want="text"),
                render=_no_text,
                document=tokenizer.document,
                folder=folder,
            ).documents
        return map(tokenizer.document, self)

    def _read(self) -> Iterator[str]:
        for source in self._data:
            again = partial(_read, source, self._stack, "text", say=_silent if source.stream else print)
            found = (
                sources.repeated(again, source.weight, source.source)
                if source.stream
                else _rows(source, self._stack, "text")
            )
            yield from (row.text for row in found if isinstance(row, Example) and row.text)


def _silent(said: str) -> None:
    """Bad rows of a text that is read more than once are named once."""


def _no_text(row: TrainingRow) -> Tree:
    raise DataError(f"{row.source or 'row'}: has no text to pretrain on")


def _names(data: Sequence[Source]) -> str:
    return ", ".join(s.source for s in data)


def _write_tokenizer(stack: Stack, tokenizer: Tokenizer, folder: Path) -> None:
    """Put tokenizer, chat template and stop tokens beside the weights, so that any other server renders and stops as we do."""
    name = stack.spec.template
    template = load_template(name, tokenizer, folder=None, root=stack.root) if name != "model" else None
    tokenizer.save(folder, chat_template=template.jinja if template else None)
    stops = sorted({tokenizer.eos_id, *(template.stop_tokens if template else ())})
    config = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops, "pad_token_id": tokenizer.eos_id}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _record(stack: Stack, name: str, data: Sequence[Source]) -> dict[str, Any]:
    """What a run remembers of how it came to be."""
    spec = stack.spec.weights.base if name == "base" else stack.stage(name)
    ancestors = {role: stack.stage_key(ancestor) for role, ancestor in stack.needs(name).items()}
    return {
        "stack": stack.spec.name,
        "stage": name,
        "spec": plain(spec),
        "ancestors": ancestors,
        "template": stack.spec.template,
        "data": {s.source: stacks.content_key(stack.root, s.source) for s in data},
    }


# ---- what training would cost ----
