"""Training of a whole stack: every stage from its declaration to finished weights, in order.

In: a Stack and the folder of runs. Out: `runs/<stage key>/model` for each stage. A finished stage is used
again, an interrupted one resumes. For a stage, rows become token trees, trees train a model, the model is
saved.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from demeanor.core import hardware, registry
from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.files import write_json, write_text
from demeanor.core.types import Example, TrainingRow, Unpaired
from demeanor.data import sources
from demeanor.data.batches import Assembled, assemble, stored
from demeanor.data.rows import Want
from demeanor.data.trees import Tree, example_tree, mismatched, packed, preference_tree, unpaired_tree
from demeanor.model import checkpoints, quantize
from demeanor.stack import stack as stacks
from demeanor.stack.schema import (
    GenerationEvalSpec,
    Import,
    ImportStage,
    MergeStage,
    OnlineStage,
    QuantiseStage,
    Remote,
    Scratch,
    Source,
    Stage,
)
from demeanor.stack.stack import OBJECTIVES, Stack, plain
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import Template, load_template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training import derived, generation_eval, online_stage, rounding
from demeanor.training import stage as training
from demeanor.training.parallel import join
from demeanor.training.progress import StageProgress
from demeanor.training.runs import LEDGER, Runs, import_folder, notes, weights_folder
from demeanor.training.stage import REFERENCE, FrozenPolicy, RunOptions


def train(
    stack: Stack,
    runs: Runs,
    *,
    only: Sequence[str] = (),
    options: RunOptions = RunOptions(),
    probe: int | None = None,
    services: online_stage.OnlineServices,
) -> None:
    """Train every stage (or those in `only` and their ancestors) that has no finished weights, in order.

    `probe`: every policy that declares no evaluation by generation answers this many held-out prompts.
    Raises DemeanorError before any work if this machine cannot compile or quantise as asked.
    """
    stages = stack.spec.weights.stages
    wanted = {"base", *(stage.name for stage in stages)}
    if only:
        wanted = {name for stage in only for name in _needed(stack, stage)}
    if options.compiled and hardware.compiler() is None:
        raise DemeanorError(
            "--compile: no C++ compiler (g++ or clang++) on this machine; install one, or leave --compile out"
        )
    for note in notes(stack, runs):
        print(note)
    for stage in stages:
        if isinstance(stage, Stage) and stage.adapter is not None and stage.name in wanted:
            quantize.require(stage.adapter, stage.name)
    if "base" in wanted:
        _train_base(stack, runs, options)
    for stage in stages:
        if stage.name not in wanted:
            continue
        if isinstance(stage, Stage):
            _train_stage(stack, runs, _with_probe(stage, probe), options, services)
        else:
            with join().first_alone():  # under torchrun the others find the stage finished
                _make_stage(stack, runs, stage)


def _with_probe(stage: Stage, count: int | None) -> Stage:
    """The stage, evaluated on `count` held-out prompts if it declares no probe and trains a policy."""
    if count is None or stage.probe is not None:
        return stage
    if not registry.entry(OBJECTIVES, str(stage.objective["kind"])).POLICY:
        return stage
    return stage.model_copy(update={"probe": GenerationEvalSpec(count=count)})


def tolerant(stack: Stack) -> Stack:
    """The stack with `skip_bad` set on every source; its keys stay, since they are of the files' contents."""
    weights = stack.spec.weights
    base: Any = _tolerant(weights.base) if isinstance(weights.base, Scratch) else weights.base
    stages = tuple(_tolerant(stage) if isinstance(stage, Stage) else stage for stage in weights.stages)
    changed = weights.model_copy(update={"base": base, "stages": stages})
    return replace(stack, spec=stack.spec.model_copy(update={"weights": changed}))


def _tolerant(spec: Scratch | Stage) -> Scratch | Stage:
    data = tuple(source.model_copy(update={"skip_bad": True}) for source in spec.data)
    return spec.model_copy(update={"data": data})


def _needed(stack: Stack, name: str) -> set[str]:
    """A stage and all stages whose weights it needs: ancestors, reference, the reward model of its probe."""
    ancestors = set(stack.needs(name).values())
    stage = None if name == "base" else stack.stage(name)
    if isinstance(stage, Stage) and stage.probe and stage.probe.reward:
        ancestors.add(stage.probe.reward)
    return {name}.union(*(_needed(stack, ancestor) for ancestor in ancestors))


def _train_base(stack: Stack, runs: Runs, options: RunOptions) -> None:
    base, key, say = stack.spec.weights.base, stack.stage_key("base"), StageProgress("base").say
    if isinstance(base, Import):
        folder = import_folder(stack, runs, base.path)
        say(f"imported from {stack.root / base.path if (stack.root / base.path).is_file() else folder}")
        return
    if isinstance(base, Remote):
        say(f"{base.model} at {base.url}: nothing to train here")
        return
    if runs.complete(key):
        say(f"trained already ({key})")
        return
    streams = any(source.stream for source in base.data)
    texts: Iterable[str] = _texts(stack, base) if streams else list(_texts(stack, base))
    with join().first_alone():  # under torchrun the others read what the first one wrote
        tokenizer = _tokenizer(base, texts, runs.folder(key))
    with training.start(runs, "base", key, _record(stack, "base", base.data), options) as run:
        documents: Iterable[list[int]] = map(tokenizer.document, texts)
        if streams:  # read once more, into a file
            documents = assemble(
                base.data,
                read=lambda source, noted: sources.read(source, root=stack.root, want="text", problems=noted),
                render=_no_text,
                document=tokenizer.document,
                folder=run.folder,
            ).documents
        packs = packed(documents, base.row_tokens, base.tokens, base.seed)
        rows = stored(packs, run.folder if streams else None)
        model = training.pretrain(base, tokenizer.vocab_size, rows, run)
        if run.group.first:
            _finish(stack, runs, key, tokenizer, partial(checkpoints.save, model))


def _tokenizer(base: Scratch, texts: Iterable[str], folder: Path) -> Tokenizer:
    """The base's tokenizer, trained once; it is kept in the run's folder for a resume."""
    place = folder / "tokenizer"
    if not place.is_dir():
        part = folder / "tokenizer.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tokenizers.train(texts, base.tokenizer).save(part)
        part.rename(place)
    return tokenizers.load(place)


def _texts(stack: Stack, base: Scratch) -> Iterator[str]:
    """The documents of every source, by its weight; a source that streams is read again for each repeat."""
    for source in base.data:
        if source.stream:
            again = partial(sources.read, source, root=stack.root, want="text", say=lambda said: None)
            rows: Iterable[TrainingRow] = sources.repeated(again, source.weight, source.source)
        else:
            rows = sources.rows(source, root=stack.root, want="text")
        yield from (row.text for row in rows if isinstance(row, Example) and row.text)


def _no_text(row: TrainingRow) -> Tree:
    raise DataError(f"{row.source or 'row'}: has no text to pretrain on")


def _train_stage(
    stack: Stack,
    runs: Runs,
    stage: Stage,
    options: RunOptions,
    services: online_stage.OnlineServices,
) -> None:
    key = stack.stage_key(stage.name)
    if runs.complete(key):
        StageProgress(stage.name).say(f"trained already ({key})")
        return
    if stage.probe is not None and join().size > 1:
        raise DemeanorError(
            f"{stage.name}: probe: it needs the whole model in one process; leave the probe out"
        )
    parent = weights_folder(stack, runs, stack.parent(stage.name))
    tokenizer = tokenizers.load(parent)
    template = load_template(stack.spec.template, tokenizer, folder=parent, root=stack.root)
    objective = registry.entry(OBJECTIVES, stack.objective_kind(stage.name))
    ancestor = stack.roles(stage.name).get(REFERENCE)
    reference = None
    if ancestor is not None:
        reference = FrozenPolicy(stack.stage_key(ancestor), weights_folder(stack, runs, ancestor))
    evaluation = None
    if stage.probe is not None:
        frozen = parent if reference is None else reference.folder
        evaluation = generation_eval.prepare(
            stack,
            runs,
            stage,
            tokenizer,
            template,
            parent=parent,
            reference=frozen,
            services=services.generation,
        )
    data: Sequence[Source] = stage.data
    if isinstance(stage, OnlineStage):
        data = (*stage.prompts, *(stage.ptx.data if stage.ptx else ()))
    with training.start(runs, stage.name, key, _record(stack, stage.name, data), options) as run:
        context = checkpoints.checkpoint_info(parent).context
        save = partial(checkpoints.save_checkpoint, adapter=stage.adapter, parent=parent)
        if isinstance(stage, OnlineStage):
            ptx = (
                () if stage.ptx is None else ptx_trees(stack, stage, template, tokenizer, context, run.folder)
            )
            model = online_stage.train(
                stack,
                runs,
                stage,
                run,
                tokenizer=tokenizer,
                template=template,
                parent=parent,
                reference=reference,
                ptx=ptx,
                probe=evaluation,
                services=services,
            )
            if run.group.first:
                _finish(stack, runs, key, tokenizer, partial(save, model))
            return
        trees = stage_trees(stack, stage, template, tokenizer, context, run.folder)
        model = training.train_stage(
            stage,
            objective,
            stack.objectives[stage.name],
            trees,
            run,
            parent=parent,
            reference=reference,
            generation_eval=evaluation,
        )
        if run.group.first:
            _finish(stack, runs, key, tokenizer, partial(save, model))


def _make_stage(stack: Stack, runs: Runs, stage: ImportStage | MergeStage | QuantiseStage) -> None:
    """Import, merge or quantise one stage."""
    made = {"import": "imported", "merge": "merged", "quantise": "rounded"}[stage.kind]
    key, say = stack.stage_key(stage.name), StageProgress(stage.name).say
    if runs.complete(key):
        say(f"{made} already ({key})")
        return
    ancestors = stage.of if isinstance(stage, MergeStage) else (stack.parent(stage.name),)
    say(f"{made} from {stage.path if isinstance(stage, ImportStage) else ', '.join(ancestors)}")
    write, tokenizer = derived.prepare(stack, runs, stage)
    with runs.begin(key, _record(stack, stage.name, ())) as folder:
        if isinstance(stage, QuantiseStage):
            write = _measured(stack, runs, stage, tokenizer, write, folder)
        _finish(stack, runs, key, tokenizer, write)


def _measured(
    stack: Stack, runs: Runs, stage: QuantiseStage, tokenizer: Tokenizer, write: derived.Write, folder: Path
) -> derived.Write:
    """Let `write` measure the loss that rounding costs on held-out rows, for the stage's log."""
    say, parent = StageProgress(stage.name).say, weights_folder(stack, runs, stack.parent(stage.name))
    source = rounding.source(stack, stage.name)

    def measured(part: Path) -> None:
        write(part)
        if source is None:
            say("no stage before it trains on rows: what rounding costs was not measured")
            return
        template = load_template(stack.spec.template, tokenizer, folder=parent, root=stack.root)
        context = checkpoints.checkpoint_info(parent).context
        trees = stage_trees(stack, source, template, tokenizer, context, folder)
        found = rounding.measured(parent, part, trees, source.max_tokens or context)
        write_text(folder / LEDGER, json.dumps({"step": 0, **found}) + "\n")
        say(rounding.sentence(found, source.name))

    return measured


def _finish(stack: Stack, runs: Runs, key: str, tokenizer: Tokenizer, save: Callable[[Path], object]) -> None:
    """Write the finished folder with the tokenizer, chat template and stop tokens that a server needs."""
    part = runs.part(key)
    save(part)
    name, template = stack.spec.template, None
    if name != "model":
        template = load_template(name, tokenizer, folder=None, root=stack.root)
    stops = sorted({tokenizer.eos_id, *tokenizer.ends, *(template.stop_tokens if template else ())})
    padding, pad_id = None, tokenizer.eos_id
    if checkpoints.is_reward(part):
        padding = _set_padding(part, stack, tokenizer, stops)
        pad_id = tokenizer.special.get(str(padding), pad_id)
    tokenizer.save(part, chat_template=template.jinja if template else None, pad_token=padding)
    config = {"bos_token_id": tokenizer.bos_id, "eos_token_id": stops, "pad_token_id": pad_id}
    (part / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    runs.finish(key)


def _set_padding(folder: Path, stack: Stack, tokenizer: Tokenizer, stops: Sequence[int]) -> str | None:
    """Write into a reward model's config.json, if it has one, a padding token that ends no answer.

    Without one it is null: transformers then refuses batches and reads single rows.
    """
    ends = set(stops)
    if stack.spec.template == "model" and tokenizer.config.get("chat_template"):
        ends |= load_template("model", tokenizer, folder=None, root=stack.root).stop_tokens
    padding, path = tokenizer.padding(ends), folder / "config.json"
    if path.is_file():
        raw = json.loads(path.read_text(encoding="utf-8"))
        write_json(path, {**raw, "pad_token_id": tokenizer.special.get(str(padding))}, indent=2)
    return padding


def stage_trees(
    stack: Stack, stage: Stage, template: Template, tokenizer: Tokenizer, context: int, folder: Path
) -> Sequence[Tree]:
    """The rows of a stage as token trees, plain text packed; in a file in `folder` if a source streams."""
    objective = registry.entry(OBJECTIVES, stack.objective_kind(stage.name))
    wants: Want = objective.ROWS
    found, kept = _assembled(stack, stage.data, wants, template, tokenizer, folder)
    if wants == "unpaired" and objective.KL:
        return stored(mismatched(found.trees, stage.seed), kept)
    return _with_text(found, (stage.max_tokens or context) - 1, stage.seed, kept)


def ptx_trees(
    stack: Stack, stage: OnlineStage, template: Template, tokenizer: Tokenizer, context: int, folder: Path
) -> Sequence[Tree]:
    """The rows of an online stage's second data line, plain text packed; rows beyond `max_tokens` are left out."""
    assert stage.ptx is not None
    found, kept = _assembled(stack, stage.ptx.data, "examples", template, tokenizer, folder)
    longest = stage.max_tokens or context
    trees = [x for x in _with_text(found, longest - 1, stage.seed, kept) if x.longest <= longest]
    if not trees:
        raise DataError(f"{stage.name}: ptx.data: no row of at most {longest} tokens")
    return trees


def _assembled(
    stack: Stack, data: Sequence[Source], wants: Want, template: Template, tokenizer: Tokenizer, folder: Path
) -> tuple[Assembled, Path | None]:
    """Trees and documents of some sources, and where trees are kept if a source streams."""
    found = assemble(
        data,
        read=lambda source, noted: sources.read(source, root=stack.root, want=wants, problems=noted),
        render=partial(render, template, tokenizer, wants),
        document=tokenizer.document,
        folder=folder,
        doubts=sources.Doubts(tokenizer.special, template.jinja),
    )
    return found, folder if any(source.stream for source in data) else None


def _with_text(found: Assembled, row_tokens: int, seed: int, kept: Path | None) -> Sequence[Tree]:
    """The trees, and the documents packed into rows before them."""
    if not found.documents:
        return found.trees
    rows = packed(found.documents, row_tokens, sum(map(len, found.documents)), seed)
    return stored(chain(rows, found.trees), kept)


def render(template: Template, tokenizer: Tokenizer, wants: Want, row: TrainingRow) -> Tree:
    """One row as a token tree, in the form that the objective reads."""
    if isinstance(row, Example):
        return example_tree(row, template, tokenizer)
    if wants == "unpaired" or isinstance(row, Unpaired):
        return unpaired_tree(row, template)
    return preference_tree(row, template)


def _record(stack: Stack, name: str, data: Sequence[Source]) -> dict[str, Any]:
    """What the run's record keeps: the resolved settings, the keys of its ancestors and of its data."""
    spec = stack.spec.weights.base if name == "base" else stack.stage(name)
    return {
        "stack": stack.spec.name,
        "stage": name,
        "spec": plain(spec),
        "ancestors": {role: stack.stage_key(ancestor) for role, ancestor in stack.needs(name).items()},
        "template": stack.spec.template,
        "data": {source.source: stacks.content_key(stack.root, source.source) for source in data},
    }
