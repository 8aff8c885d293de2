"""Live traffic: which arm answers a user, and what is done with a turn after its answer.

In: declarations made ready to run. Out: a Respond for each served variant that registers exposures and selects turns for shadows and
evaluators when an answer has ended. The answer waits for a moment at most, and for nothing that may fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from demeanor.core.errors import DemeanorError
from demeanor.core.types import Completion, Done, Event, Item, Messages, Respond, Turn, fold
from demeanor.evaluation.scorers import score_item
from demeanor.stack.serving_schema import EvaluatorSpec, ExperimentSpec, ScoreSpec, ShadowSpec
from demeanor.store import experiments, turn_jobs
from demeanor.store.database import Database
from demeanor.store.turn_jobs import Outcome
from demeanor.traffic import traffic_report
from demeanor.traffic.assignment import Assignment, first_assignment, identity, uniform
from demeanor.traffic.jobs import LEASE_S, TICK_S, JobRunner

log = logging.getLogger("demeanor.traffic")
WRITE_S = 0.25
"""How long the end of an answer waits until its exposure and its jobs are in the database."""


@dataclass(frozen=True, slots=True)
class PreparedArm:
    """An arm that can answer."""

    model_id: str
    respond: Respond


@dataclass(frozen=True, slots=True)
class PreparedExperiment:
    """An experiment whose arms can answer; `id` is its identity (evaluation/ab_test.py)."""

    id: str
    spec: ExperimentSpec
    arms: tuple[PreparedArm, ...]


@dataclass(frozen=True, slots=True)
class Sampler:
    """A runner and which turns it selects."""

    runner: JobRunner
    spec: ShadowSpec | EvaluatorSpec

    def selects(self, turn: Turn, model_id: str, whole: bool) -> bool:
        """Whether a turn that `model_id` answered is selected; `whole`: it was asked of the whole stack."""
        if isinstance(self.spec, ShadowSpec):
            if not whole:
                return False
        elif self.spec.models and model_id not in self.spec.models:
            return False
        return uniform(self.runner.job.kind, self.spec.name, turn.id) < self.spec.share


def process_name() -> str:
    """A name that no other process has, now or later."""
    return f"{os.getpid()}-{uuid.uuid4().hex[:12]}"


@dataclass(eq=False)
class LiveTraffic:
    """Experiments, shadows and evaluators of one served version of a stack.

    `begin` starts what runs in the background, in the server's loop; `close` stops it.
    """

    database: Database
    prepared: tuple[PreparedExperiment, ...]
    owner: str = field(default_factory=process_name)
    samplers: list[Sampler] = field(default_factory=list)
    live: int = 0
    exposed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Turns by experiment and arm, of this process."""
    failures: Counter[str] = field(default_factory=Counter)
    running: dict[str, bool] = field(default_factory=dict)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _begun: bool = False

    # ---- life ----

    def begin(self) -> None:
        """Start the workers and the clockwork, once."""
        if self._begun:
            return
        self._begun = True
        for sampler in self.samplers:
            sampler.runner.begin()
        self._spawn(self._tick())

    async def _tick(self) -> None:
        """At intervals: which experiments run, leases of this process, and what killed processes left."""
        for note in self.notes():
            log.warning("%s", note)
        for each in self.prepared:
            await self._try(
                experiments.register(
                    self.database, each.id, each.spec.name, each.spec.model_dump(mode="json")
                )
            )
        for sampler in self.samplers:
            job, declared = sampler.runner.job, sampler.spec.model_dump(mode="json")
            await self._try(turn_jobs.declare(self.database, job.kind, job.name, job.version, declared))
        while True:
            try:
                await asyncio.to_thread(self.refresh)
                await turn_jobs.renew(self.database, self.owner, LEASE_S)
                for found in await asyncio.to_thread(turn_jobs.take_over, self.database, self.owner, LEASE_S):
                    await self._dispatch(found)
            except DemeanorError as error:
                log.error("live traffic: %s", error)
            await asyncio.sleep(TICK_S)

    def refresh(self) -> None:
        """Read which experiments run; one that was stopped, or replaced by another declaration, assigns nobody any more."""
        ended = experiments.stopped(self.database)
        self.running = {each.spec.name: each.id not in ended for each in self.prepared}

    async def _dispatch(self, job: turn_jobs.TurnJob) -> None:
        for sampler in self.samplers:
            found = sampler.runner.job
            if (found.kind, found.name, found.version) == (job.kind, job.name, job.version):
                sampler.runner.queue(job)
                return
        await turn_jobs.finish(self.database, job, Outcome("lost", "its declaration is no longer served"))

    def close(self) -> None:
        """Stop what runs in the background; what is not finished is left to the next process."""
        for task in list(self._tasks):
            if not task.get_loop().is_closed():
                task.cancel()
        for sampler in self.samplers:
            sampler.runner.close()
        with contextlib.suppress(DemeanorError):
            turn_jobs.release(self.database, self.owner)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _try(self, write: Awaitable[Any]) -> None:
        try:
            await write
        except DemeanorError as error:
            self.failures["writes"] += 1
            log.error("live traffic: %s", error)

    # ---- routing ----

    def assign(self, user: str | None, messages: Messages) -> tuple[Assignment, PreparedExperiment] | None:
        """The arm for a request to the whole stack; None: the whole stack itself answers."""
        specs = [each.spec for each in self.prepared]
        found = first_assignment(specs, self.running, identity(user, messages)) if specs else None
        if found is None:
            return None
        return found, next(e for e in self.prepared if e.spec is found.experiment)

    def observed(
        self,
        inner: Respond,
        model_id: str,
        *,
        whole: bool,
        assigned: tuple[Assignment, PreparedExperiment] | None = None,
    ) -> Respond:
        """The same answers; a finished one is exposed to its experiment and offered to shadows and evaluators."""

        async def respond(turn: Turn) -> AsyncIterator[Event]:
            self.begin()
            events, seen, started = inner(turn), list[Event](), time.monotonic()
            self.live += 1
            try:
                async for event in events:
                    seen.append(event)
                    if isinstance(event, Done) and event.finish_reason != "cancelled" and turn.raw is None:
                        ms = 1000 * (time.monotonic() - started)
                        await self._ended(turn, fold(seen), ms, model_id, whole, assigned)
                    yield event
            finally:
                self.live -= 1
                if isinstance(events, AsyncGenerator):
                    await events.aclose()

        return respond

    async def _ended(
        self,
        turn: Turn,
        completion: Completion,
        ms: float,
        model_id: str,
        whole: bool,
        assigned: tuple[Assignment, PreparedExperiment] | None,
    ) -> None:
        """Register a finished turn; never raises, and waits `WRITE_S` at most."""
        tasks = []
        if assigned is not None:
            tasks.append(self._spawn(self._expose(turn, completion, ms, *assigned)))
        for sampler in self.samplers:
            if sampler.selects(turn, model_id, whole) and (task := sampler.runner.select(turn.id)):
                tasks.append(task)
        if tasks:
            await asyncio.wait(tasks, timeout=WRITE_S)

    async def _expose(
        self, turn: Turn, completion: Completion, ms: float, found: Assignment, prepared: PreparedExperiment
    ) -> None:
        spec = found.experiment
        self.exposed[spec.name, spec.arm_names[found.arm]] += 1
        try:
            value = await asyncio.to_thread(turn_value, spec.score, turn, completion, ms)
        except Exception as error:
            self.failures["scores"] += 1
            log.error("experiment %s: a turn has no score: %s", spec.name, type(error).__name__)
            value = None
        await self._try(experiments.expose(self.database, prepared.id, turn.id, found.unit, found.arm, value))

    # ---- what it says of itself ----

    def notes(self) -> list[str]:
        """What should have run and did not."""
        found = [
            f"experiment {name}: this declaration was stopped and assigns nobody; remove it, or give it another `salt` to begin anew"
            for name, runs in self.running.items()
            if not runs
        ]
        found += [note for sampler in self.samplers if (note := sampler.runner.note()) is not None]
        if self.failures:
            told = ", ".join(f"{number} {what}" for what, number in sorted(self.failures.items()))
            found.append(f"experiments: failed: {told}")
        return found

    def report(self) -> dict[str, Any]:
        """Experiments, shadows and evaluators of the database as JSON values, with the notes of this process."""
        rows = [traffic_report.experiment(self.database, e) for e in experiments.experiments(self.database)]
        return {
            "experiments": [traffic_report.experiment_json(row) for row in rows],
            "jobs": [traffic_report.job_json(row) for row in traffic_report.job_reports(self.database)],
            "notes": self.notes(),
        }

    def stop(self, which: str, reason: str) -> bool:
        """End an experiment; False if it has ended before. Raises UsageError for an unknown one."""
        stopped = experiments.stop(self.database, traffic_report.find(self.database, which).id, reason)
        self.refresh()
        return stopped

    def outcomes(self) -> list[tuple[str, str, str, int]]:
        """Of this process: kind, name, outcome and number, those of zero too that an alarm would look for."""
        rows: list[tuple[str, str, str, int]] = []
        for sampler in self.samplers:
            job, counted = sampler.runner.job, sampler.runner.outcomes
            for outcome in sorted({"due", "done", "failed", "lost", *counted}):
                rows.append((job.kind, job.name, outcome, counted[outcome]))
        return rows


def turn_value(score: ScoreSpec, turn: Turn, completion: Completion, ms: float) -> float | None:
    """The score of a turn where it is known at its end; None where feedback or an evaluator gives it later."""
    match score.kind:
        case "refused":
            return float(completion.refusal is not None)
        case "tokens":
            return float(completion.completion_tokens)
        case "ms":
            return ms
        case "scorer":
            return score_item(scored_item(turn, str(score.scorer), score.target), completion).value
        case _:
            return None


def scored_item(turn: Turn, scorer: str, target: Any) -> Item:
    """A live turn as an item, for a scorer of docs/scorers.md."""
    return Item(turn.id, turn.messages, scorer, target, "live", turn.user, None, (), turn.tools)


Screen = Callable[[Turn, Completion], Awaitable[str]]
"""The text of an answer as the served policy would have let a user see it."""
