"""One run of training: the base from random weights, or a stage from its parent's weights.

In: settings of the stack, token trees, the run's folder, options of this machine. Out: the trained model,
which training/pipeline.py saves. An interrupted run resumes from its checkpoint. It does not know text,
templates or data sources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from demeanor.core import hardware
from demeanor.core.errors import CheckpointError, DemeanorError
from demeanor.data.batches import Schedule, select, summary, within
from demeanor.data.trees import Tree
from demeanor.model import adapters, checkpoints, quantize
from demeanor.model.exact import exact_policy_outputs, obstacle
from demeanor.model.heads import policy_outputs, reward_outputs
from demeanor.model.llama import Config, Llama
from demeanor.model.packed_size import size
from demeanor.model.reward_model import ActorCritic, RewardModel
from demeanor.objectives import Objective
from demeanor.objectives.sft import NoSettings, sft
from demeanor.stack.schema import OnlineStage, Optim, Scratch, Stage
from demeanor.training import heldout, memory, resume
from demeanor.training.ema import EMA
from demeanor.training.loop import Evaluate, ForwardFn, LossFn, fit
from demeanor.training.online import Setup, fit_online, policy_of
from demeanor.training.parallel import ProcessGroup, gathered, join, shard
from demeanor.training.progress import OpenTracker, StageProgress, Tracker
from demeanor.training.reference import reference_logprobs, trees_key
from demeanor.training.rewards import Task
from demeanor.training.runs import CHECKPOINT, Runs, note

REFERENCE = "reference"
REFERENCES = "references"  # folder beside the runs: log-probs of frozen references, named by content


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How training runs on this machine; of these, only `dtype` changes the weights it ends with."""

    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    compiled: bool = False
    recompute: bool = False
    checkpoint_every_s: float = 20.0
    track: OpenTracker | None = None
    watch: Callable[[str], StageProgress] = StageProgress


class TrainingRun(NamedTuple):
    """A run in progress: stage, key, locked folder, record, processes, options, and its display."""

    stage: str
    key: str
    folder: Path
    record: Mapping[str, Any]
    group: ProcessGroup
    options: RunOptions
    display: StageProgress


class FrozenPolicy(NamedTuple):
    """A trained policy that a stage reads and does not change: its stage key and model folder."""

    key: str
    folder: Path


MakeEvaluate = Callable[[Sequence[Tree], Path, Callable[[str], None]], Evaluate | None]
"""From held-out trees, the run's folder and a printer to an evaluation; None if no prompt fits the model."""


@contextmanager
def start(
    runs: Runs, stage: str, key: str, record: Mapping[str, Any], options: RunOptions
) -> Iterator[TrainingRun]:
    """The run of a key: the first process locks its folder and prints; the others share it and are silent.

    Raises DemeanorError if another command holds the lock.
    """
    group = join()
    with runs.begin(key, record) if group.first else nullcontext(runs.folder(key)) as folder:
        silent = StageProgress(stage, stream=StringIO(), terminal=False)
        display = options.watch(stage) if group.first else silent
        yield TrainingRun(stage, key, folder, record, group, options, display)
        group.wait()


def pretrain(base: Scratch, vocab_size: int, rows: Sequence[Tree], run: TrainingRun) -> nn.Module:
    """Train a base from random weights on packed rows. Raises DataError if no token carries loss."""
    untrained = partial(checkpoints.create, base.model, vocab_size, base.seed)
    run.display.say(summary(run.stage, rows, rewards=False))
    schedule = Schedule(rows, batch_rows=base.batch_rows, epochs=1.0, seed=base.seed)
    model = _placed(untrained(), base.optim, run)
    fit(
        model,
        policy_outputs,
        partial(sft, NoSettings()),
        rows,
        schedule,
        base.optim,
        out=run.folder,
        watch=run.display,
        read_last=False,
        checkpoint_every_s=run.options.checkpoint_every_s,
        dtype=number_format(model, run),
        group=run.group,
        tracker=_tracker(run),
    )
    return gathered(model, untrained()) if run.group.size > 1 else model


def train_stage(
    stage: Stage,
    objective: Objective,
    settings: Any,
    trees: Sequence[Tree],
    run: TrainingRun,
    *,
    parent: Path,
    reference: FrozenPolicy | None,
    generation_eval: MakeEvaluate | None = None,
) -> nn.Module:
    """Train one stage from the weights in the folder `parent` and return its model.

    `settings` are the objective's own. `reference` is the frozen policy that the objective compares with, if
    it reads one. Raises DataError if no token carries loss.
    """
    rewards, options = objective.READS == "rewards", run.options

    def untrained() -> nn.Module:
        model: nn.Module = checkpoints.reward(parent, stage.seed) if rewards else checkpoints.policy(parent)
        if stage.adapter is not None:
            adapters.attach(model, stage.adapter, stage.seed)
        return model

    rows = within(trees, stage.max_tokens or checkpoints.checkpoint_info(parent).context, stage.name)
    kept, held = heldout.split(rows)
    model = _placed(untrained(), stage.optim, run)
    dtype = number_format(model, run)
    if stage.adapter is not None and stage.adapter.quantise is not None:
        quantize.freeze(model)
    left_out = len(trees) - len(rows)
    run.display.say(summary(stage.name, rows, rewards=rewards, left_out=left_out, held_out=len(held)))

    logprobs = moving = None
    if REFERENCE in objective.ROLES:
        assert reference is not None, f"{stage.name}: the objective reads a reference; got none"
        logprobs = _reference_logprobs(reference, rows, run, dtype)
        if objective.MOVING is not None:  # it starts as the frozen reference and follows the policy
            frozen = None if reference.folder == parent else checkpoints.policy(reference.folder)
            start_weights = None if frozen is None else dict(frozen.named_parameters())
            alpha, every = objective.MOVING(settings)
            moving = EMA(model, alpha=alpha, every=every, start=start_weights)

    outputs: ForwardFn = (
        reward_outputs if rewards else partial(policy_outputs, statistics=objective.STATISTICS)
    )
    loss: LossFn = partial(objective.loss, settings)
    unseen = select(rows, held)
    evaluate = heldout.evaluator(
        outputs,
        loss,
        unseen,
        _at(logprobs, held),
        read_last=rewards,
        dtype=dtype,
        whole_step=objective.WHOLE_STEP,
    )
    generated = generation_eval and generation_eval(unseen, run.folder, run.display.say)
    evaluations = [x for x in (evaluate, generated) if x is not None]
    seen = select(rows, kept)
    schedule = Schedule(seen, batch_rows=stage.batch_rows, epochs=stage.epochs, seed=stage.seed)
    _choose_recompute(model, stage, seen, schedule, run, bf16=dtype is not None, head=not rewards)
    fit(
        model,
        outputs,
        loss,
        seen,
        schedule,
        stage.optim,
        out=run.folder,
        watch=run.display,
        read_last=rewards,
        reference=None if moving else _at(logprobs, kept),
        checkpoint_every_s=options.checkpoint_every_s,
        evaluate=partial(_evaluate_all, evaluations) if evaluations else None,
        dtype=dtype,
        whole_step=objective.WHOLE_STEP,
        moving=moving,
        group=run.group,
        tracker=_tracker(run),
    )
    return gathered(model, untrained()) if run.group.size > 1 else model


class Critic(NamedTuple):
    """Where a critic starts: a folder of weights, zeros in place of its score, its share of normalised rewards."""

    folder: Path
    zero: bool = False
    shift: float = 0.0
    scale: float = 1.0


def train_online(
    stage: OnlineStage,
    run: TrainingRun,
    setup: Callable[..., Setup],
    *,
    parent: Path,
    reference: FrozenPolicy | None,
    critic: Callable[[], Critic] | None,
    held_out: Sequence[Task],
) -> nn.Module:
    """Train one stage on its policy's own completions and return the policy.

    `setup` makes the loop's setup from the forward function, the reference policy, and a function that makes the
    policy without training; `critic` says where a critic starts, if the objective has one.
    """

    def untrained() -> nn.Module:
        model: nn.Module = checkpoints.policy(parent)
        if stage.adapter is not None:
            adapters.attach(model, stage.adapter, stage.seed)
        return model

    def whole() -> nn.Module:
        if critic is None:
            return untrained()
        start = critic()
        values = checkpoints.reward(start.folder, stage.seed)
        if not isinstance(values, RewardModel):
            raise DemeanorError(
                f"{stage.name}: a critic cannot start from {start.folder}, which runs through transformers; wanted a "
                "model of the Llama family, or an objective without a critic (rloo, grpo)"
            )
        if stage.adapter is not None:
            adapters.attach(values, stage.adapter, stage.seed)
        if start.zero:
            torch.nn.init.zeros_(values.score.weight)
        return ActorCritic(untrained(), values, start.shift, start.scale)

    model = _placed(whole(), stage.optim, run)
    if run.options.dtype == "auto" and obstacle(policy_of(model)) is not None:
        # Without the exact forward, bf16 would take the trainer's log-probs far away from the sampler's.
        begun = resume.begun_in(run.folder / CHECKPOINT)
        run = run._replace(options=replace(run.options, dtype="bf16" if begun == "bf16" else "fp32"))
    dtype = number_format(model, run)
    if stage.adapter is not None and stage.adapter.quantise is not None:
        quantize.freeze(model)
    frozen = None
    if reference is not None:
        frozen = checkpoints.policy(reference.folder).to(hardware.device()).requires_grad_(False)
    fit_online(
        model,
        setup(forward=exact_policy_outputs, reference=frozen, untrained=untrained),
        out=run.folder,
        watch=run.display,
        held_out=held_out,
        checkpoint_every_s=run.options.checkpoint_every_s,
        dtype=dtype,
        group=run.group,
        tracker=_tracker(run),
    )
    policy = policy_of(model)
    return gathered(policy, untrained()) if run.group.size > 1 else policy


def _placed(model: nn.Module, optim: Optim, run: TrainingRun) -> nn.Module:
    """The model on its device, sharded if there are several processes, compiled if the options say so."""
    if run.group.size > 1 and optim.kind == "muon":
        raise DemeanorError(
            "optim.kind: muon needs whole matrices, which several processes hold in shards; use adamw there"
        )
    model.to(hardware.device())
    shard(model, run.group)
    for trunk in (module for module in model.modules() if isinstance(module, Llama)):
        trunk.recompute = run.options.recompute
        if run.options.compiled and run.group.size == 1:
            trunk.compile_layers()
    return model


def number_format(model: nn.Module, run: TrainingRun) -> torch.dtype | None:
    """The format of matrix products, None for fp32: the one that was asked for, or the faster; in the record.

    An interrupted run keeps its own. Raises CheckpointError if another one is asked for.
    """
    asked, state = run.options.dtype, run.folder / CHECKPOINT
    begun = resume.begun_in(state)
    if begun is not None and asked not in ("auto", begun):
        raise CheckpointError(
            f"{run.stage}: --dtype {asked}, but this interrupted run began in {begun}; leave --dtype out to go "
            f"on, or delete {state} to begin again"
        )
    name = begun or asked
    if name == "auto":
        shapes = [(p.shape[0], p.shape[1]) for p in model.parameters() if p.ndim == 2]
        faster = run.group.first and hardware.training_dtype(shapes) is not None
        name = "bf16" if run.group.any(faster) else "fp32"
    if run.group.first:
        note(run.folder, dtype=name, cpu=hardware.cpu_name())
    return None if name == "fp32" else resume.FORMATS[name]


LOOKED = 64
"""Steps of a schedule whose largest micro-batch stands for all."""


def _choose_recompute(
    model: nn.Module,
    stage: Stage,
    rows: Sequence[Tree],
    schedule: Schedule,
    run: TrainingRun,
    *,
    bf16: bool,
    head: bool,
) -> None:
    """Compute layers again in the backward pass if that is asked for, or if a step would not fit in memory otherwise; say before
    the first step if it does not fit even so."""
    asked = True if run.options.recompute else stage.recompute
    config, recompute, said = getattr(model, "config", None), bool(asked), None
    if isinstance(config, Config) and hardware.device().type == "cpu" and run.group.size == 1:
        rank = 0 if stage.adapter is None else stage.adapter.rank
        micro = memory.largest(rows, [schedule[i] for i in range(min(len(schedule), LOOKED))])
        whole, again = (
            memory.estimate(config, micro, rank=rank, bf16=bf16, recompute=x, head=head)
            for x in (False, True)
        )
        if asked is None and memory.exceeds(whole) and again.total < whole.total:
            recompute = True
            run.display.say(
                f"a step needs about {whole}, more than this machine has: layers are computed again in the backward pass "
                f"(about {size(again.total)}, a third more computing; recompute: false turns it off)"
            )
        said = memory.warning(again if recompute else whole, rank=rank, recompute=recompute)
    for trunk in (module for module in model.modules() if isinstance(module, Llama)):
        trunk.recompute = recompute
    if said is not None:
        run.display.say(said)


def _reference_logprobs(
    reference: FrozenPolicy, rows: Sequence[Tree], run: TrainingRun, dtype: torch.dtype | None
) -> list[list[float]]:
    with run.group.first_alone():  # the others read what it wrote
        return reference_logprobs(
            lambda: checkpoints.policy(reference.folder),
            policy_outputs,
            rows,
            folder=run.folder.parent / REFERENCES,
            model_key=reference.key,
            data_key=trees_key(rows),
            dtype=dtype,
        )


def _tracker(run: TrainingRun) -> Callable[[], Tracker] | None:
    track = run.options.track
    return None if track is None else partial(track, run.stage, run.key, run.record)


def _at(logprobs: list[list[float]] | None, indices: Sequence[int]) -> list[list[float]] | None:
    return None if logprobs is None else [logprobs[i] for i in indices]


def _evaluate_all(evaluations: Sequence[Evaluate], model: nn.Module, step: int) -> dict[str, float]:
    return {name: value for evaluate in evaluations for name, value in evaluate(model, step).items()}
