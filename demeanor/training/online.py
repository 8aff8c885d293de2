"""The online loop: prompts -> completions -> rewards -> one batch of token trees -> optimiser steps.

In: a policy (and a critic), tasks, functions that sample and score, an objective. Out: the trained model. All
that an iteration draws is a pure function of (seed, iteration) and the weights, so a killed run goes on bit
for bit. It knows no engine, scorer or template.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate as accumulate_sizes
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from demeanor.core.errors import DemeanorError
from demeanor.data.batches import Schedule
from demeanor.data.trees import Tree, collate
from demeanor.model.reward_model import ActorCritic
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import Objective
from demeanor.objectives._importance import importance_weights
from demeanor.objectives.sft import NoSettings, sft
from demeanor.stack.schema import OnlineStage
from demeanor.training import heldout, optimizer, progress, resume
from demeanor.training.ema import EMA
from demeanor.training.iteration import (
    MISMATCH,
    Columns,
    Iteration,
    Unit,
    batch_of,
    examples,
    iteration_of,
    minibatches,
    mismatch,
    ranked,
    rollout_metrics,
    sample_metrics,
    samples_of,
    seeds,
)
from demeanor.training.loop import (
    Evaluate,
    ForwardFn,
    Gradient,
    Mix,
    accumulate,
    due,
    evaluation,
    is_evaluation,
    running,
    to_device,
)
from demeanor.training.online_display import (
    best_name,
    best_step,
    evaluation_line,
    is_best,
    parted,
    state_line,
)
from demeanor.training.optimizer import learning_rate
from demeanor.training.parallel import ALONE, ProcessGroup, gathered, settle
from demeanor.training.progress import StageProgress, measured_peak, training_flops
from demeanor.training.reference import MICRO_TOKENS, micro_batches
from demeanor.training.resume import stop_requests
from demeanor.training.rewards import Roll, Rollout, Task
from demeanor.training.runs import BEST, CHECKPOINT, LEDGER, read_log

ROLLOUTS = "rollouts.jsonl"
CPU_TOKENS = 2048  # of a micro-batch: on a CPU larger ones need more memory and are no faster
RECENT = 10  # iterations whose means the progress line shows
NOTHING = (
    "WARNING: none of its answers has a reward (or all are cut off and masked), so it trains nothing; see "
    "reward/unscored and completions/clipped_ratio in the log"
)


class Scored(Protocol):
    """Rewards of rollouts in order (None: cannot be scored), and metrics of every term."""

    @property
    def total(self) -> list[float | None]: ...

    def metrics(self) -> dict[str, float]: ...


Score = Callable[[Sequence[Rollout]], Scored]


class Multiplier(Protocol):
    """The multiplier of a constraint, which follows what was measured; its state is saved with the run."""

    @property
    def value(self) -> float: ...

    def update(self, cost: float) -> None: ...

    def combined(self, reward: float, cost: float) -> float: ...

    def state(self) -> dict[str, float]: ...

    def load(self, state: Mapping[str, float]) -> None: ...


class Constraint(NamedTuple):
    """A second reward that answers must keep low on average, and its multiplier."""

    cost: Score
    limit: float
    multiplier: Multiplier


@dataclass(frozen=True)
class Setup:
    """Everything that an online stage trains with, besides the model."""

    stage: OnlineStage
    objective: Objective
    settings: Any
    tasks: Sequence[Task]
    roll: Roll
    score: Score
    forward: ForwardFn
    untrained: Callable[[], nn.Module]
    reference: nn.Module | None = None
    ptx: Sequence[Tree] = ()
    constraint: Constraint | None = None
    refused: Callable[[str], bool] | None = None
    probe: Evaluate | None = None


def policy_of(model: nn.Module) -> nn.Module:
    """The policy of a model that may have a critic beside it."""
    return model.policy if isinstance(model, ActorCritic) else model


# ---- the loop ----


@dataclass
class Trainer:
    """One run of an online stage: the model, its optimiser, and what an iteration needs."""

    model: nn.Module
    setup: Setup
    dtype: torch.dtype | None
    group: ProcessGroup
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        setup = self.setup
        stage, online = setup.stage, setup.objective.ONLINE
        self.device = next(self.model.parameters()).device
        self.micro_tokens = CPU_TOKENS if self.device.type == "cpu" else MICRO_TOKENS
        self.settings = (
            setup.settings if online is None else online.resolved(setup.settings, stage.rollouts.max_tokens)
        )
        self.beta = 0.0 if online is None else online.beta(self.settings)
        statistics = ("entropy",) if online else setup.objective.STATISTICS
        outputs = cast(ForwardFn, partial(cast(Any, setup.forward), statistics=statistics))
        self.policy = policy_of(self.model)
        self.forward = running(self.model, self._outputs(outputs), self.dtype)
        self.plain = running(self.policy, setup.forward, self.dtype)
        self.frozen = None if setup.reference is None else running(setup.reference, setup.forward, self.dtype)
        scales = {"critic.": (stage.critic_lr or stage.optim.lr) / stage.optim.lr}
        critic = isinstance(self.model, ActorCritic)
        self.optimizer = (
            optimizer.adamw(self.model, stage.optim, scales)
            if critic
            else optimizer.optimizer(self.model, stage.optim)
        )
        prompts = [Tree(task.tokens, ()) for task in setup.tasks]
        epochs = stage.epochs if stage.steps is None else stage.steps * stage.batch_rows / len(prompts)
        self.order = Schedule(prompts, batch_rows=stage.batch_rows, epochs=epochs, seed=stage.seed)
        self.iterations = len(self.order)
        self.per_iteration = stage.inner_epochs * stage.minibatches
        self.data = None
        if stage.ptx is not None:
            rows = stage.ptx.batch_rows * self.iterations * self.per_iteration
            self.data = Schedule(
                setup.ptx,
                batch_rows=stage.ptx.batch_rows,
                epochs=rows / len(setup.ptx),
                seed=stage.seed,
                micro_tokens=self.micro_tokens,
            )

    def state(self) -> dict[str, Any]:
        """The numbers that the run changes as it goes, as JSON."""
        multiplier = self.setup.constraint.multiplier.state() if self.setup.constraint else {}
        return {"beta": self.beta, "lambda": multiplier}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with the numbers of a saved run; nothing if it is empty."""
        self.beta = state.get("beta", self.beta)
        if state.get("lambda") and self.setup.constraint is not None:
            self.setup.constraint.multiplier.load(state["lambda"])

    def _outputs(self, forward: ForwardFn) -> ForwardFn:
        """The policy's outputs, with the critic's values where there is one."""

        def outputs(model: nn.Module, batch: TokenBatch) -> Outputs:
            if not isinstance(model, ActorCritic):
                return forward(model, batch)
            return forward(model.policy, batch)._replace(values_C=model.values(batch))

        return outputs

    # -- sampling --

    def sample(self, number: int) -> tuple[Iteration, dict[str, float]]:
        """Answers of the policy to the prompts of an iteration, scored, and their metrics."""
        stage, began_s = self.setup.stage, self.clock()
        tasks = [self.setup.tasks[i] for part in self.order[number] for i in part]
        rolled = self.rolled(tasks, seeds(stage.seed, number, len(tasks), stage.rollouts.count))
        sampled_s = self.clock()
        flat = [rollout for rollouts in rolled for rollout in rollouts]
        if flat and all(rollout.error is not None for rollout in flat):
            raise DemeanorError(
                f"iteration {number + 1}: all {len(flat)} rollouts failed, the first with: {flat[0].error}. Mend the "
                "environment or its limits; the same command goes on from the checkpoint"
            )
        scored = self.group.from_first(lambda: self.setup.score(flat))
        constraint = self.setup.constraint
        costs = None if constraint is None else self.group.from_first(lambda: constraint.cost(flat))
        found = iteration_of(stage, rolled, scored.total, None if costs is None else costs.total)
        metrics = {
            **rollout_metrics(rolled, self.setup.refused),
            **scored.metrics(),
            "groups": float(len(found.units)),
            "time/generate": sampled_s - began_s,
            "time/score": self.clock() - sampled_s,
        }
        if costs is not None:  # its terms: cost/NAME/mean and so on
            columns = {k: v for k, v in costs.metrics().items() if k.startswith("rewards/")}
            metrics |= {f"cost/{name.removeprefix('rewards/')}": value for name, value in columns.items()}
        if constraint is not None and found.costs:
            cost, multiplier = fmean(found.costs), constraint.multiplier
            multiplier.update(cost)
            metrics |= {"cost": cost, "cost/lambda": multiplier.value, "cost/limit": constraint.limit}
            joint = tuple(map(multiplier.combined, found.rewards, found.costs))
            found = found._replace(rewards=joint)
        return found, metrics

    def rolled(self, tasks: Sequence[Task], numbers: Sequence[Sequence[int]]) -> list[list[Rollout]]:
        """Rollouts of the policy, sampled by the first process."""
        policy = self.policy if self.group.size == 1 else gathered(self.policy, self.setup.untrained())
        return self.group.from_first(lambda: self.setup.roll(policy, tasks, numbers))

    # -- columns --

    @torch.no_grad()
    def columns(self, found: Iteration, units: Sequence[Unit]) -> tuple[Columns, dict[str, float]]:
        """What the loss reads of every scored token: sampled and reference log-probs, advantages, values."""
        online = self.setup.objective.ONLINE
        temperature = self.setup.stage.rollouts.temperature if online else 1.0
        columns: Columns = {
            "sampled_C": [torch.tensor([x for p in u.paths for x in p.sampled]) for u in units]
        }
        sizes, critic = [sum(unit.lengths) for unit in units], isinstance(self.model, ActorCritic)
        importance = self.setup.stage.rollouts.importance
        weighted = online is not None and importance.mode != "none"
        wanted = {"reference_C": self.frozen is not None, "value_C": critic, "trainer_C": weighted}
        for name in (name for name, needed in wanted.items() if needed):
            columns[name] = [torch.empty(0)] * len(units)
        if any(wanted.values()):
            for part in micro_batches([unit.tree for unit in units], self.micro_tokens):
                batch = batch_of(units, {}, part, temperature, self.device)
                if self.frozen is not None:
                    _spread(columns["reference_C"], part, self.frozen(batch).logprobs_C, sizes)
                if isinstance(self.model, ActorCritic):
                    _spread(columns["value_C"], part, self.model.values(batch), sizes)
                if weighted:
                    _spread(columns["trainer_C"], part, self.plain(batch).logprobs_C, sizes)
        if online is None:
            return {name: parts for name, parts in columns.items() if name == "reference_C"}, {}
        if weighted:  # ratios and KL are of the trainer's log-probs; the sampler's are for the weights
            columns["sampled_C"], drawn = columns.pop("trainer_C"), columns["sampled_C"]
        samples, order_C = samples_of(found, units, columns, self.beta)
        trained = online.advantages(self.settings, samples)
        if weighted:
            weights = importance_weights(
                importance.mode,
                importance.cap,
                samples.sampled_C,
                torch.cat(drawn)[order_C],
                samples.branch_C,
            )
            trained = trained._replace(
                advantage_C=trained.advantage_C * weights.weight_C,
                metrics={**trained.metrics, **weights.metrics},
            )
        for name, values_C in (("advantage_C", trained.advantage_C), ("return_C", trained.return_C)):
            if values_C is not None:
                columns[name] = list(
                    torch.split(torch.empty_like(values_C).scatter(0, order_C, values_C), sizes)
                )
        return columns, sample_metrics(samples, trained)

    # -- steps --

    def train(self, number: int, found: Iteration) -> tuple[dict[str, float], float]:
        """The optimiser steps of one iteration; returns metrics (means over steps) and floating-point operations."""
        stage, online = self.setup.stage, self.setup.objective.ONLINE
        began_s, temperature = self.clock(), stage.rollouts.temperature if online else 1.0
        if online is None:
            found = ranked(found, self.setup.objective.ROWS)
        units = [unit for group in found.units for unit in group]
        ends = list(accumulate_sizes(len(group) for group in found.units))
        places = [range(end - len(group), end) for end, group in zip(ends, found.units)]
        columns, metrics = self.columns(found, units) if units else ({}, {})
        flops, work = training_flops(self.model, head=True), 0.0
        gradients: list[Gradient] = []
        for epoch in range(stage.inner_epochs):
            for part, cut in enumerate(minibatches(units, places, stage.minibatches, self.micro_tokens)):
                at = number * self.per_iteration + epoch * stage.minibatches + part
                kept, more = self._skipped(units, columns, cut)
                batches = [
                    batch_of(units, columns, self.group.share(micro), temperature, self.device)
                    for micro in kept
                ]
                gradients.append(self._step(at, batches, more))
                work += sum(map(flops, batches))
        if "kl" in metrics and online is not None:
            self.beta = online.adapt(self.settings, self.beta, metrics["kl"], len(found.rollouts))
        return {**metrics, **_mean_gradients(gradients), "time/train": self.clock() - began_s}, work

    def _skipped(
        self, units: Sequence[Unit], columns: Columns, cut: list[list[int]]
    ) -> tuple[list[list[int]], float]:
        """Leave out trees whose gradient is exactly 0; returns what is left, and the part of the mean's count
        that is left out."""
        online = self.setup.objective.ONLINE
        if online is None or not online.skips(self.settings) or not cut:
            return cut, 0.0
        left = [[i for i in part if bool(columns["advantage_C"][i].any())] for part in cut]
        left = [part for part in left if part] or [cut[0][:1]]  # a step with a gradient of 0 is still a step
        inside = {i for part in left for i in part}
        lengths = [n for part in cut for i in part if i not in inside for n in units[i].lengths]
        return left, online.count(self.settings, torch.tensor(lengths)) if lengths else 0.0

    def _step(self, at: int, batches: list[TokenBatch], more: float) -> Gradient:
        """One optimiser step: the objective's gradient, the second data line's, the update."""
        stage, setup = self.setup.stage, self.setup
        mix = None
        if not batches and self.data is None:  # nothing of this step could be scored
            return Gradient(0.0, 0.0, 0.0, 0, {})
        if self.data is not None and stage.ptx is not None:
            rows = [
                to_device(collate([setup.ptx[i] for i in self.group.share(part)]), self.device)
                for part in self.data[at]
            ]
            mix = Mix(self.plain, partial(sft, NoSettings()), rows, stage.ptx.weight)
        gradient = accumulate(
            self.model,
            self.forward,
            self._loss,
            batches,
            stage.optim.clip_norm,
            whole_step=setup.objective.WHOLE_STEP,
            group=self.group,
            more=more,
            mix=mix,
        )
        if not gradient.finite:
            raise DemeanorError(
                f"optimiser step {at + 1}: the loss or its gradient is not finite; the checkpoint before this "
                "iteration is kept. Lower optim.lr, or look at the rewards of this iteration"
            )
        rate = learning_rate(stage.optim, at, self.iterations * self.per_iteration)
        for settings in self.optimizer.param_groups:
            settings["lr"] = rate * settings.get("scale", 1.0)
        self.optimizer.step()
        return gradient

    def _loss(self, outputs: Outputs, batch: TokenBatch) -> Loss:
        loss = self.setup.objective.loss(self.settings, outputs, batch)
        if self.setup.stage.rollouts.importance.mode != "none":  # measured where the weights are made
            return loss
        return Loss(loss.total, loss.count, {**loss.metrics, **mismatch(outputs, batch)})


def _spread(into: list[Tensor], part: Sequence[int], values_C: Tensor | None, sizes: Sequence[int]) -> None:
    assert values_C is not None
    for i, values in zip(part, torch.split(values_C.float().cpu(), [sizes[i] for i in part])):
        into[i] = values


def _mean_gradients(gradients: Sequence[Gradient]) -> dict[str, float]:
    names = dict.fromkeys(name for g in gradients for name in g.metrics)
    found = {name: fmean(g.metrics[name] for g in gradients if name in g.metrics) for name in names}
    for name in MISMATCH:  # of the weights that sampled
        if name in gradients[0].metrics:
            found[name] = gradients[0].metrics[name]
    return {
        "loss": fmean(g.loss for g in gradients),
        "grad_norm": fmean(g.norm for g in gradients),
        "tokens": float(sum(g.tokens for g in gradients)),
        "count": float(sum(g.counted for g in gradients)),
        **found,
    }


# ---- evaluation ----


def reward_evaluator(trainer: Trainer, tasks: Sequence[Task]) -> Evaluate:
    """A function that samples one answer to each held-out task, always with the same seeds, and scores it."""

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        setup = trainer.setup
        rolled = trainer.rolled(tasks, seeds(setup.stage.seed, -1, len(tasks), 1))
        flat = [rollout for rollouts in rolled for rollout in rollouts]
        found = trainer.group.from_first(lambda: setup.score(flat))
        metrics = {"reward_rows": float(len(tasks)), **found.metrics()}
        known = [value for value in found.total if value is not None]
        if len(known) > 1:
            ones = torch.ones(len(known), dtype=torch.float64)
            low, high = heldout.clustered(torch.tensor(known, dtype=torch.float64), ones)
            metrics |= {"reward/low": low, "reward/high": high}
        return metrics

    return evaluate


# ---- the run ----


def fit_online(
    model: nn.Module,
    setup: Setup,
    *,
    out: Path,
    watch: StageProgress,
    held_out: Sequence[Task] = (),
    checkpoint_every_s: float = 20.0,
    dtype: torch.dtype | None = None,
    group: ProcessGroup = ALONE,
    tracker: Callable[[], progress.Tracker] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train `model` (a policy, or an ActorCritic) in place, from the checkpoint in `out` if there is one.

    Evaluates before the first iteration and after each fifth of them. Raises Interrupted (exit code 130) after
    Ctrl-C, with a checkpoint written; DemeanorError if the loss is not finite, with the last checkpoint kept.
    """
    trainer = Trainer(model, setup, dtype, group, clock)
    stage, steps, state = setup.stage, trainer.iterations, out / CHECKPOINT
    ema = None if stage.optim.ema is None else EMA(model, alpha=1.0 - stage.optim.ema)
    averages = {} if ema is None else {"ema": ema}
    about = {
        "steps": steps,
        "rows": len(setup.tasks),
        "optim": stage.optim.model_dump(mode="json"),
        "dtype": str(dtype or torch.float32),
    }

    evaluations: list[Evaluate] = []
    if held_out:
        evaluations.append(reward_evaluator(trainer, held_out))
    if setup.probe is not None:
        probe = setup.probe
        evaluations.append(lambda whole, step: dict(probe(policy_of(whole), step)))

    def look(done: int) -> None:
        if not evaluations or not (not done or due(done, steps)):
            return
        with nullcontext() if ema is None else ema.swapped_into(model):
            found = {
                name: value for one in evaluations for name, value in evaluation(one, model, done).items()
            }
            if stage.keep == "best" and is_best(out, found):
                resume.save_weights(out / best_name(done), policy_of(model))
        settle(model)
        rows.append({"step": done, **found})
        if stage.keep == "best" and group.first:
            for path in set(out.glob(BEST)) - {out / best_name(best_step(out) or 0)}:
                path.unlink()
        watch.say(evaluation_line(done, found))
        evaluated = [row for row in read_log(out / LEDGER) if is_evaluation(row)] if group.first else []
        if warning := parted(evaluated):
            watch.say(warning)

    begun = resume.load(state, model, trainer.optimizer, about, averages)
    trainer.load(resume.controllers_in(state))
    seen = any(is_evaluation(row) for row in read_log(out / LEDGER) if row["step"] == begun)
    peak = measured_peak(trainer.device.type, dtype or torch.float32)
    book = (
        progress.MetricsLog(out / LEDGER, step=begun, tracker=tracker) if group.first else progress.NullLog()
    )
    shown = progress.MetricsLog(out / ROLLOUTS, step=begun) if group.first else progress.NullLog()
    with book as rows, shown as readable, stop_requests() as stop, watch.running(steps, begun, peak):
        if not seen:  # a run killed while it evaluated
            look(begun)
        saved_s, recent, told = clock(), deque[dict[str, float]](maxlen=RECENT), False
        for step in range(begun, steps):
            start_s, done, before = clock(), step + 1, trainer.state()
            sampled, metrics = trainer.sample(step)
            if group.any(stop.asked):  # the iteration is drawn again after a resume, alike
                resume.save(state, model, trainer.optimizer, step, about, averages, group, before)
                raise stop.obeyed(step, steps)
            if not sampled.units and not told:
                watch.say(f"iteration {done}: {NOTHING}")
                told = True
            found, flops = trainer.train(step, sampled)
            for average in averages.values():
                average.update(model, done)
            rate = learning_rate(stage.optim, done * trainer.per_iteration - 1, steps * trainer.per_iteration)
            rows.append(
                {"step": done, "lr": rate, **metrics, **found, "seconds": round(clock() - start_s, 4)}
            )
            if done == 1 or due(done, steps):
                for example in examples(sampled):
                    readable.append({"step": done, **example})
            recent.append({**metrics, **found})
            watch.show(state_line(recent))
            watch.update(done, found["loss"], int(found["tokens"]), flops)
            stopping = group.any(stop.asked)
            if (
                stopping
                or done == steps
                or due(done, steps)
                or group.any(group.first and clock() - saved_s >= checkpoint_every_s)
            ):
                resume.save(state, model, trainer.optimizer, done, about, averages, group, trainer.state())
                saved_s = clock()
            if stopping:
                raise stop.obeyed(done, steps)
            look(done)
        if group.any(stop.asked):
            raise stop.obeyed(steps, steps)
    if ema is not None:
        ema.copy_to(model)
    if stage.keep == "best":
        chosen = best_step(out)
        if chosen is not None:
            resume.load_weights(out / best_name(chosen), policy_of(model))
            watch.say(f"kept the weights of step {chosen}, the best by the held-out score")
