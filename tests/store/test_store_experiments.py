"""Experiments and jobs in the database: one run a declaration, every outcome counted, nothing left pending by a killed process."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demeanor.core.types import Decoding, Done, Message, Text, Turn
from demeanor.store import experiments, turn_jobs
from demeanor.store.database import Database, open_url
from demeanor.store.turn_jobs import Outcome
from tests.conftest import each


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(database_url: str, clock: Clock) -> Iterator[Database]:
    database = open_url(database_url, root=Path(), now=clock)
    yield database
    database.close()


async def record(database: Database, *ids: str) -> None:
    now = database.now()
    for id in ids:
        turn = Turn((Message("user", "When?"),), Decoding(), id=id, user="edda")
        await database.record(turn, [Text("At 9."), Done("stop")], now, now)


async def test_a_changed_declaration_ends_the_run_and_begins_another(database: Database) -> None:
    await experiments.register(database, "a1", "prompt", {"score": "refused"})
    await experiments.register(database, "a1", "prompt", {"score": "something else"})
    await experiments.register(database, "b1", "other", {})
    await experiments.register(database, "a2", "prompt", {"score": "tokens"})
    found = {e.id: e for e in experiments.experiments(database)}
    assert found["a1"].declared == {"score": "refused"}
    assert (found["a1"].stopped is not None, found["a1"].reason) == (True, "replaced by a2")
    assert experiments.running(database) == {"a2", "b1"}


async def test_a_stopped_run_stays_stopped_when_it_is_registered_again(database: Database) -> None:
    await experiments.register(database, "a1", "prompt", {})
    assert experiments.stop(database, "a1", "decided")
    assert not experiments.stop(database, "a1", "again")
    await experiments.register(database, "a1", "prompt", {})
    assert experiments.running(database) == frozenset()


async def test_exposures_come_with_their_feedback_and_leave_with_their_turn(database: Database) -> None:
    await record(database, "t1", "t2")
    await experiments.register(database, "a1", "prompt", {})
    await experiments.expose(database, "a1", "t1", "u1", 0, 0.25)
    await experiments.expose(database, "a1", "t2", "u2", 1, None)
    await experiments.expose(database, "a1", "t2", "u2", 0, 0.5)  # there already
    await experiments.expose(database, "a1", "never recorded", "u3", 1, 1.0)
    database.add_feedback("t2", -1.0)
    found = experiments.exposures(database, "a1")
    assert [(e.turn, e.unit, e.arm, e.value, [v for _, v in e.ratings]) for e in found] == [
        ("t1", "u1", 0, 0.25, []),
        ("t2", "u2", 1, None, [-1.0]),
    ]
    assert experiments.experiment_of(database, "t2") == [("prompt", 1)]
    await database.forget("t2")
    assert [e.turn for e in experiments.exposures(database, "a1")] == ["t1"]


async def test_a_job_has_one_outcome_and_every_outcome_is_counted(database: Database) -> None:
    await record(database, "t1")
    id = await turn_jobs.add(database, "shadow", "next", "v1", "t1", "me", 60)
    assert id is not None
    job = turn_jobs.job(database, id)
    assert job is not None
    await turn_jobs.finish(database, job, Outcome("done", value=0.5, answer="At 9.", ms=3.0))
    await turn_jobs.finish(database, job, Outcome("failed", "too late"))
    await turn_jobs.count(database, "shadow", "next", "v1", "skipped: budget")
    assert await turn_jobs.add(database, "shadow", "next", "v1", "never recorded", "me", 60) is None
    (found,) = turn_jobs.jobs(database, kind="shadow", turn="t1")
    assert found.outcome == Outcome("done", value=0.5, answer="At 9.", ms=3.0)
    assert turn_jobs.counts(database)["shadow", "next", "v1"] == {
        "due": 2,
        "done": 1,
        "lost: not recorded": 1,
        "skipped: budget": 1,
    }


async def test_what_a_killed_process_left_is_taken_over_once_and_then_counted_as_lost(
    database: Database, clock: Clock
) -> None:
    await record(database, "t1", "t2")
    for turn in each(["t1", "t2"]):
        await turn_jobs.add(database, "evaluator", "polite", "v1", turn, "killed", 60)
    assert turn_jobs.take_over(database, "me", 60) == []  # its lease holds
    clock.move(61)
    taken = turn_jobs.take_over(database, "me", 60)
    assert sorted((job.turn, job.attempts) for job in taken) == [("t1", 2), ("t2", 2)]
    assert turn_jobs.take_over(database, "another", 60) == []
    await turn_jobs.finish(database, taken[0], Outcome("done", value=1.0))
    await turn_jobs.renew(database, "me", 600)
    clock.move(61)
    assert turn_jobs.take_over(database, "another", 60) == []  # it lives: it has renewed
    clock.move(600)
    assert turn_jobs.take_over(database, "another", 60) == []
    counted = turn_jobs.counts(database)["evaluator", "polite", "v1"]
    assert counted == {"due": 2, "done": 1, "lost": 1}
    assert {job.state for job in turn_jobs.jobs(database)} == {"done", "lost"}


async def test_jobs_leave_with_their_turn(database: Database) -> None:
    await record(database, "t1")
    await turn_jobs.add(database, "shadow", "next", "v1", "t1", "me", 60)
    await database.forget("t1")
    assert turn_jobs.jobs(database) == []
