"""Runs jobs on live turns after their answers: within a budget, below live answers, each outcome counted, none lost silently.

In: the ids of recorded turns, a function that does the work. Out: outcomes in the database, counts for /metrics, and a note where a job that
should have run did not. It never touches the live answer: it takes an id and returns at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from demeanor.core.errors import DemeanorError
from demeanor.stack.serving_schema import JobBudget
from demeanor.store import turn_jobs
from demeanor.store.database import Database, Stored
from demeanor.store.turn_jobs import Kind, Outcome, TurnJob

log = logging.getLogger("demeanor.traffic")
LEASE_S = 120.0
"""How long a job belongs to a process that says nothing any more."""
TICK_S = 5.0
IDLE_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class JobKind:
    """What is run: `version` hashes its declaration, `work` does it; `own_engine`: it waits until no live answer is written."""

    kind: Kind
    name: str
    version: str
    budget: JobBudget
    work: Callable[[Stored], Awaitable[Outcome]]
    own_engine: bool


@dataclass(eq=False)
class JobRunner:
    """The queue and the workers of one shadow or evaluator, in one process.

    `live` is the number of answers that users are waiting for, `owner` names the process. `begin` starts the workers in the running loop.
    """

    job: JobKind
    database: Database
    live: Callable[[], int]
    owner: str
    clock: Callable[[], float] = time.monotonic
    outcomes: Counter[str] = field(default_factory=Counter)
    """Of this process: selected turns (`due`) and what became of them."""
    _queue: deque[tuple[float, TurnJob]] = field(default_factory=deque)
    _ready: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _begun: deque[float] = field(default_factory=deque)
    _is_begun: bool = False
    _adding: int = 0
    _running: int = 0
    _since_done: int = 0
    _last_why: str = ""
    _told: set[str] = field(default_factory=set)

    # ---- taking jobs ----

    def select(self, turn: str) -> asyncio.Task[Any] | None:
        """Take a turn, or count why not; returns at once: a task that ends when the job is in the database."""
        self.outcomes["due"] += 1
        if (why := self._full()) is not None:
            self._skipped(why)
            return None
        self._adding += 1
        return self._spawn(self._add(turn))

    def _full(self) -> str | None:
        if len(self._queue) + self._adding >= self.job.budget.waiting:
            return "queue full"
        limit, now = self.job.budget.per_minute, self.clock()
        while self._begun and self._begun[0] <= now - 60.0:
            self._begun.popleft()
        if limit is not None and len(self._begun) >= limit:
            return "per_minute"
        self._begun.append(now)
        return None

    def _skipped(self, why: str) -> None:
        """A selected turn that gets no job; it is counted as due and as skipped, here and in the database."""
        self._ended("skipped", why)
        about = self.job.kind, self.job.name, self.job.version
        for outcome in ("due", f"skipped: {why}"):
            self._spawn(self._written(turn_jobs.count(self.database, *about, outcome)))

    async def _add(self, turn: str) -> None:
        job = self.job
        try:
            id = await turn_jobs.add(
                self.database, job.kind, job.name, job.version, turn, self.owner, LEASE_S
            )
            found = None if id is None else await asyncio.to_thread(turn_jobs.job, self.database, id)
        except DemeanorError as error:
            self._ended("lost", f"not written: {error}")
            return
        finally:
            self._adding -= 1
        if found is None:
            self._ended("lost", "the turn is not recorded")
            return
        self.queue(found)

    def queue(self, job: TurnJob) -> None:
        """Queue a job that is in the database: a new one, or one that another process left."""
        self._queue.append((self.clock(), job))
        self._ready.set()

    # ---- running them ----

    def begin(self) -> None:
        """Start the workers; a second call does nothing."""
        if not self._is_begun:
            self._is_begun = True
            for _ in range(self.job.budget.concurrency):
                self._spawn(self._work())

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        # an empty context: nothing of the request (its key, its budget, its counts) belongs to the job
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _written(self, write: Awaitable[Any]) -> None:
        try:
            await write
        except DemeanorError as error:
            self._tell(f"cannot be counted: {error}")

    async def _work(self) -> None:
        while True:
            while not self._queue:
                self._ready.clear()
                await self._ready.wait()
            _, job = self._queue.popleft()
            self._running += 1
            try:
                outcome = await self._outcome(job)
            finally:
                self._running -= 1
            self._ended(outcome.state, outcome.reason)
            await self._written(turn_jobs.finish(self.database, job, outcome))

    async def _outcome(self, job: TurnJob) -> Outcome:
        """Do the work; whatever it raises is its own failure."""
        budget = self.job.budget
        try:
            if (why := await asyncio.to_thread(self._spent)) is not None:
                return Outcome("skipped", why)
            if self.job.own_engine and not await self._idle(budget.patience_s):
                return Outcome("skipped", "busy: live answers left no room")
            stored = await asyncio.to_thread(self.database.turn, job.turn)
            if stored is None:
                return Outcome("lost", "the turn was deleted")
            async with asyncio.timeout(budget.timeout_s):
                outcome = await self.job.work(stored)
        except TimeoutError:
            return Outcome("failed", f"no result within {budget.timeout_s:g} s")
        except DemeanorError as error:
            return Outcome("failed", f"{type(error).__name__}: {error}"[:500])
        except Exception as error:  # its message may hold a user's words
            return Outcome("failed", type(error).__name__)
        prices = budget.usd_per_million or (0.0, 0.0)
        cost = (outcome.prompt_tokens * prices[0] + outcome.completion_tokens * prices[1]) / 1e6
        return replace(outcome, cost_usd=cost) if cost else outcome

    def _spent(self) -> str | None:
        """Which limit of the day (UTC) is used up, over all processes."""
        budget = self.job.budget
        if budget.per_day is None and budget.tokens_per_day is None and budget.usd_per_day is None:
            return None
        used = turn_jobs.used(self.database, self.job.kind, self.job.name, _day(self.database.now()))
        limits = (budget.per_day, budget.tokens_per_day, budget.usd_per_day)
        for name, limit, spent in zip(("per_day", "tokens_per_day", "usd_per_day"), limits, used):
            if limit is not None and spent >= limit:
                return name
        return None

    async def _idle(self, patience_s: float) -> bool:
        """Wait until nobody waits for an answer; False if that takes longer than `patience_s`."""
        until = self.clock() + patience_s
        while self.live():
            if self.clock() >= until:
                return False
            await asyncio.sleep(IDLE_POLL_S)
        return True

    # ---- what became of them ----

    def _ended(self, state: str, why: str) -> None:
        self.outcomes[f"{state}: {why.split(':')[0]}" if state == "skipped" else state] += 1
        if state == "done":
            self._since_done, self._told = 0, set()
            return
        self._since_done += 1
        self._last_why = f"{state}: {why}"
        if state in ("failed", "lost"):
            self._tell(self._last_why)
        if (note := self.note()) is not None:
            self._tell(note, "silent")

    def note(self) -> str | None:
        """Why this job does not run although it should; None if it does, or nothing was selected yet."""
        name, budget = f"{self.job.kind} {self.job.name}", self.job.budget
        if self._since_done >= budget.alarm_after:
            return f"{name}: none of the last {self._since_done} selected turns was finished (last: {self._last_why})"
        waited = self.clock() - self._queue[0][0] if self._queue else 0.0
        if waited > 2 * (budget.patience_s + budget.timeout_s):
            return f"{name}: a job has waited {waited:.0f} s and was not begun"
        return None

    def _tell(self, what: str, kind: str = "") -> None:
        """Log it, each kind once until a job is finished again."""
        kind = kind or what.split(":")[0]
        if kind not in self._told:
            self._told.add(kind)
            log.error("%s %s: %s", self.job.kind, self.job.name, what)

    def waiting(self) -> int:
        """Jobs that are queued or running."""
        return len(self._queue) + self._running + self._adding

    def close(self) -> None:
        """Stop the workers; what they have not finished stays pending, for whoever takes it over."""
        for task in list(self._tasks):
            if not task.get_loop().is_closed():
                task.cancel()
        self._queue.clear()


def _day(now: datetime) -> str:
    return now.astimezone(UTC).date().isoformat()
