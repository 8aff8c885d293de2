"""One stage of a stack, from its parent's folder to its own finished Hugging Face folder; and the base itself, from nothing.

In: what pipeline.py hands over (specs, trees, an objective, folders). Out: `runs/<key>/model`. Whatever of it already
exists is reused or resumed. It refuses to know text, templates and worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

from torch import nn

from demeanor.core import hardware
from demeanor.core.errors import DemeanorError
from demeanor.data.batches import Schedule, select, stored, summary, within
from demeanor.data.trees import Tree, packed
from demeanor.model import adapters, checkpoints, quantize
from demeanor.model import checkpoints as models
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.model.llama import Llama
from demeanor.objectives import Objective
from demeanor.objectives.sft import NoSettings, sft
from demeanor.stack.schema import Optim, Scratch, Stage
from demeanor.train import heldout
from demeanor.train.ema import EMA
from demeanor.train.generation_eval import Watch, both
from demeanor.train.loop import ForwardFn, LossFn, fit
from demeanor.train.parallel import ProcessGroup, gathered, join, shard
from demeanor.train.progress import StageProgress
from demeanor.train.reference import reference_logprobs, trees_key
from demeanor.train.runs import Runs
from demeanor.train.trackers import Begin

REFERENCE = "reference"
REFERENCES = "references"
"""Folder beside the runs: log-probs of frozen references, by content."""


def train_stage(
    stage: Stage,
    objective: Objective,
    settings: Any,
    *,
    key: str,
    parent: Path,
    roles: Mapping[str, tuple[str, Path]],
    trees: Callable[[], Sequence[Tree]],
    runs: Runs,
    record: Mapping[str, Any],
    copy: Callable[[Path], object],
    watch: Callable[[str], StageProgress] = StageProgress,
    checkpoint_every_s: float = 20.0,
    fp32: bool = False,
    compiled: bool = False,
    recompute: bool = False,
    track: Begin | None = None,
    probe: Watch | None = None,
) -> Path:
    """Train one stage and return its model folder; nothing is loaded if that exists already.

    `parent` is the folder its weights start from, `roles` gives (key, folder) of each frozen ancestor, `trees` makes the
    rows, `copy` puts the tokenizer's files into a folder. Raises DataError if no token carries loss.
    """
    if runs.complete(key):
        return runs.model(key)
    if stage.adapter is not None:
        quantize.require(stage.adapter, stage.name)
    group = join()
    if probe is not None and group.size > 1:
        raise DemeanorError(
            f"{stage.name}: probe: it asks a whole model, and several processes hold it in parts; leave the probe out"
        )
    rewards = objective.READS == "rewards"

    def begin() -> nn.Module:
        model: nn.Module = checkpoints.reward(parent, stage.seed) if rewards else checkpoints.policy(parent)
        if stage.adapter is not None:
            adapters.attach(model, stage.adapter, stage.seed)
        return model

    with _held(runs, key, record, group) as folder:
        run: ForwardFn = (
            reward_outputs if rewards else partial(policy_outputs, statistics=objective.STATISTICS)
        )
        model = _placed(begin(), group, compiled=compiled, recompute=recompute, optim=stage.optim)
        if stage.adapter is not None and stage.adapter.quantise is not None:
            quantize.freeze(model)
        display = watch(stage.name) if group.first else _silent(stage.name)
        every = trees()
        rows = within(every, stage.max_tokens or checkpoints.checkpoint_info(parent).context, stage.name)
        kept, held = heldout.split(rows)
        display.say(
            summary(stage.name, rows, rewards=rewards, left_out=len(every) - len(rows), held_out=len(held))
        )
        reference = None
        if REFERENCE in objective.ROLES:
            ancestor, where = roles[REFERENCE]
            with group.first_alone():  # the others read what it wrote
                reference = reference_logprobs(
                    lambda: checkpoints.policy(where),
                    policy_outputs,
                    rows,
                    folder=runs.root / REFERENCES,
                    model_key=ancestor,
                    data_key=trees_key(rows),
                    fp32=fp32,
                )
        judge: LossFn = partial(objective.loss, settings)
        unseen, unseen_reference = chosen(held, rows, reference)
        evaluate = heldout.evaluator(
            run,
            judge,
            unseen,
            unseen_reference,
            read_last=rewards,
            fp32=fp32,
            whole_step=objective.WHOLE_STEP,
        )
        if probe is not None and (asks := probe(unseen, folder, display.say)) is not None:
            evaluate = both(evaluate, asks)
        seen, seen_reference = chosen(kept, rows, reference)
        schedule = Schedule(seen, batch_rows=stage.batch_rows, epochs=stage.epochs, seed=stage.seed)
        moving = None
        if objective.MOVING is not None:  # the reference starts as the frozen one and follows the policy
            start = (
                None
                if roles[REFERENCE][1] == parent
                else dict(checkpoints.policy(roles[REFERENCE][1]).named_parameters())
            )
            how = objective.MOVING(settings)
            moving = EMA(model, alpha=how.alpha, every=how.every, start=start)
        fit(
            model,
            run,
            judge,
            seen,
            schedule,
            stage.optim,
            out=folder,
            watch=display,
            read_last=rewards,
            reference=None if moving else seen_reference,
            checkpoint_every_s=checkpoint_every_s,
            evaluate=evaluate,
            fp32=fp32,
            whole_step=objective.WHOLE_STEP,
            moving=moving,
            group=group,
            also=track and partial(track, stage.name, key, record),
        )
        return _finish(
            model,
            begin,
            partial(checkpoints.save_checkpoint, adapter=stage.adapter, parent=parent),
            runs,
            key,
            copy,
            group,
        )


def pretrain(
    base: Scratch,
    *,
    key: str,
    documents: Callable[[], Iterable[list[int]]],
    vocab_size: int,
    runs: Runs,
    record: Mapping[str, Any],
    copy: Callable[[Path], object],
    watch: Callable[[str], StageProgress] = StageProgress,
    checkpoint_every_s: float = 20.0,
    fp32: bool = False,
    compiled: bool = False,
    recompute: bool = False,
    track: Begin | None = None,
) -> Path:
    """Train a base from random weights on packed rows of `documents` (token ids) and return its model folder."""
    if runs.complete(key):
        return runs.model(key)
    group = join()
    begin = partial(models.create, base.model, vocab_size, base.seed)
    with _held(runs, key, record, group) as folder:
        rows = stored(
            packed(documents(), base.row_tokens, base.tokens, base.seed),
            folder if any(source.stream for source in base.data) else None,
        )
        display = watch("base") if group.first else _silent("base")
        display.say(summary("base", rows, rewards=False))
        schedule = Schedule(rows, batch_rows=base.batch_rows, epochs=1.0, seed=base.seed)
        model = _placed(begin(), group, compiled=compiled, recompute=recompute, optim=base.optim)
        fit(
            model,
            policy_outputs,
            partial(sft, NoSettings()),
            rows,
            schedule,
            base.optim,
            out=folder,
            watch=display,
            read_last=False,
            checkpoint_every_s=checkpoint_every_s,
            fp32=fp32,
            group=group,
            also=track and partial(track, "base", key, record),
        )
        return _finish(model, begin, models.save, runs, key, copy, group)


def _held(
    runs: Runs, key: str, record: Mapping[str, Any], group: ProcessGroup
) -> AbstractContextManager[Path]:
    """The run's folder: locked by the first process, shared by the others."""
    return runs.begin(key, record) if group.first else nullcontext(runs.folder(key))


def _placed(
    model: nn.Module, group: ProcessGroup, *, compiled: bool, recompute: bool, optim: Optim
) -> nn.Module:
    """The model on its device, cut into shards where there are several processes, compiled where asked."""
    if group.size > 1 and optim.kind == "muon":
        raise DemeanorError(
            "optim.kind: muon orthogonalises whole matrices, which several processes hold in parts; use adamw there"
        )
    model.to(hardware.device())
    shard(model, group)
    trunk = getattr(model, "trunk", model)
    if isinstance(trunk, Llama):
        trunk.recompute = recompute
        if compiled and group.size == 1:
            trunk.compile_layers()
    return model


def _silent(name: str) -> StageProgress:
    return StageProgress(name, stream=StringIO(), terminal=False)


def chosen(
    indices: Sequence[int], rows: Sequence[Tree], reference: Sequence[Sequence[float]] | None
) -> tuple[Sequence[Tree], list[Sequence[float]] | None]:
    """The trees at `indices` and, where there are any, their reference log-probs."""
    return select(rows, indices), None if reference is None else [reference[i] for i in indices]


def _finish(
    model: nn.Module,
    begin: Callable[[], nn.Module],
    save: Callable[..., object],
    runs: Runs,
    key: str,
    copy: Callable[[Path], object],
    group: ProcessGroup,
) -> Path:
    """Write the finished folder; shards are gathered into a model that has none, the first process writes."""
    if group.size > 1:
        model = gathered(model, begin())
    if group.first:
        part = runs.part(key)
        save(model, part)
        copy(part)
        runs.finish(key)
    group.wait()
    return runs.model(key)
