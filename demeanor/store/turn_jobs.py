"""Work on recorded turns after their answers: copies to a shadow variant, and scores of online evaluators.

In: jobs by kind and name. Out: jobs with what came of them, and counts of every outcome, those that never ran included. A job is written
before it runs and leased by the process that runs it, so one whose process died is found and run again, or counted as lost.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

from demeanor.store.database import Database

Kind: TypeAlias = Literal["shadow", "evaluator"]
MAX_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job: a score, the answer of a shadow, its costs; `reason` says why it failed or has no score.

    `live_value` is the same score of the answer that the user got.
    """

    state: Literal["done", "failed", "skipped", "lost"]
    reason: str = ""
    value: float | None = None
    live_value: float | None = None
    answer: str | None = None
    explanation: str = ""
    model: str = ""
    stack_key: str = ""
    ms: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class TurnJob:
    """One job: `turn` is the id of its turn, `attempts` how often it was begun, `state` pending until it has an outcome."""

    id: str
    kind: Kind
    name: str
    version: str
    turn: str
    created: datetime
    attempts: int
    state: str
    outcome: Outcome | None


OUTCOME = [f.name for f in fields(Outcome) if f.name != "state"]
_FINISH = (
    "UPDATE turn_jobs SET state = ?, ended = ?, reason = ?, value = ?, live_value = ?, answer = ?, explanation = ?,"
    " model = ?, stack_key = ?, ms = ?, prompt_tokens = ?, completion_tokens = ?, cost_usd = ?"
    " WHERE id = ? AND state = 'pending'"
)
_SELECT = (
    "SELECT turn_jobs.*, turns.id AS turn_id FROM turn_jobs JOIN turns ON turns.row = turn_jobs.turn"
    " WHERE (? IS NULL OR turn_jobs.id = ?) AND (? IS NULL OR kind = ?) AND (? IS NULL OR name = ?)"
    " AND (? IS NULL OR version = ?) AND (? IS NULL OR turns.id = ?)"
    " ORDER BY turn_jobs.created DESC, turn_jobs.id LIMIT ?"
)


def add(
    database: Database, kind: Kind, name: str, version: str, turn: str, owner: str, lease_s: float
) -> Awaitable[str | None]:
    """Add a job for a recorded turn and lease it to `owner`; returns its id, None if the turn is not recorded."""
    id, now = uuid.uuid4().hex, database.now()
    row = (id, kind, name, version, owner, _stamp(now + timedelta(seconds=lease_s)), _stamp(now), turn)

    def write(connection: Any) -> str | None:
        added = connection.execute(
            "INSERT INTO turn_jobs (id, kind, name, version, turn, state, owner, lease, attempts, created)"
            " SELECT ?, ?, ?, ?, row, 'pending', ?, ?, 1, ? FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1",
            row,
        ).rowcount
        _count(connection, kind, name, version, "due", now)
        if not added:
            _count(connection, kind, name, version, "lost: not recorded", now)
            return None
        return id

    return database.queue(write)


def declare(
    database: Database, kind: Kind, name: str, version: str, declared: Mapping[str, Any]
) -> Awaitable[None]:
    """Write what a job is declared as, once; one that never selects a turn is seen by that."""
    row = (kind, name, version, json.dumps(declared), _stamp(database.now()))
    insert = (
        "INSERT INTO job_declarations (kind, name, version, declared, created) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (kind, name, version) DO UPDATE SET declared = excluded.declared"
    )

    def write(connection: Any) -> None:
        connection.execute(insert, row)

    return database.queue(write)


def declarations(database: Database) -> list[tuple[Kind, str, str, Mapping[str, Any]]]:
    """Return what was ever declared, oldest first: kind, name, version, declaration."""
    query = "SELECT * FROM job_declarations ORDER BY created, kind, name, version"
    return [(r["kind"], r["name"], r["version"], json.loads(r["declared"])) for r in database.rows(query)]


def count(database: Database, kind: Kind, name: str, version: str, outcome: str) -> Awaitable[None]:
    """Count an outcome that has no job: `eligible` turns, and those skipped before a job was made."""
    now = database.now()
    return database.queue(lambda c: _count(c, kind, name, version, outcome, now))


def _count(connection: Any, kind: str, name: str, version: str, outcome: str, now: datetime) -> None:
    connection.execute(
        "INSERT INTO job_counts (kind, name, version, day, outcome, number) VALUES (?, ?, ?, ?, ?, 1)"
        " ON CONFLICT (kind, name, version, day, outcome) DO UPDATE SET number = job_counts.number + 1",
        (kind, name, version, now.astimezone(UTC).date().isoformat(), outcome),
    )


def finish(database: Database, job: TurnJob, outcome: Outcome) -> Awaitable[None]:
    """Write what came of a job, and count it; a job that has an outcome already keeps it."""
    now = database.now()
    values = [getattr(outcome, name) for name in OUTCOME]

    def write(connection: Any) -> None:
        if connection.execute(_FINISH, (outcome.state, _stamp(now), *values, job.id)).rowcount:
            reason = outcome.reason.split(":")[0] if outcome.state == "skipped" else ""
            told = f"{outcome.state}: {reason}" if reason else outcome.state
            _count(connection, job.kind, job.name, job.version, told, now)

    return database.queue(write)


def take_over(database: Database, owner: str, lease_s: float) -> list[TurnJob]:
    """Lease the pending jobs whose lease is over; those begun `MAX_ATTEMPTS` times are counted as lost instead."""
    now = database.now()
    until = _stamp(now + timedelta(seconds=lease_s))

    def write(connection: Any) -> list[str]:
        late = "SELECT * FROM turn_jobs WHERE state = 'pending' AND lease < ?"
        everyone = connection.execute(late, (_stamp(now),)).fetchall()
        spent = [r for r in everyone if r["attempts"] >= MAX_ATTEMPTS]
        for r in spent:
            connection.execute(
                "UPDATE turn_jobs SET state = 'lost', ended = ?, reason = ? WHERE id = ?",
                (_stamp(now), "the server stopped while it ran, twice", r["id"]),
            )
            _count(connection, r["kind"], r["name"], r["version"], "lost", now)
        found = [r for r in everyone if r["attempts"] < MAX_ATTEMPTS]
        for r in found:
            connection.execute(
                "UPDATE turn_jobs SET owner = ?, lease = ?, attempts = attempts + 1 WHERE id = ?",
                (owner, until, r["id"]),
            )
        return [str(r["id"]) for r in found]

    ids = database.write(write).result()
    return [job for id in ids for job in _jobs(database, id=id)]


def renew(database: Database, owner: str, lease_s: float) -> Awaitable[None]:
    """Lengthen the leases of a living process."""
    until = _stamp(database.now() + timedelta(seconds=lease_s))
    update = "UPDATE turn_jobs SET lease = ? WHERE owner = ? AND state = 'pending'"

    def write(connection: Any) -> None:
        connection.execute(update, (until, owner))

    return database.queue(write)


def jobs(
    database: Database,
    *,
    kind: Kind | None = None,
    name: str | None = None,
    version: str | None = None,
    turn: str | None = None,
    limit: int = 1000,
) -> list[TurnJob]:
    """Return jobs, newest first; all, or those of a kind, a name, a declaration, a turn."""
    return _jobs(database, kind=kind, name=name, version=version, turn=turn, limit=limit)


def job(database: Database, id: str) -> TurnJob | None:
    """Return the job of that id."""
    return next(iter(_jobs(database, id=id)), None)


def counts(database: Database, kind: Kind | None = None) -> dict[tuple[str, str, str], dict[str, int]]:
    """Return how often each outcome came, by (kind, name, version)."""
    found: dict[tuple[str, str, str], dict[str, int]] = {}
    query = (
        "SELECT kind, name, version, outcome, SUM(number) AS number FROM job_counts"
        " WHERE ? IS NULL OR kind = ? GROUP BY kind, name, version, outcome ORDER BY kind, name, version, outcome"
    )
    for r in database.rows(query, kind, kind):
        found.setdefault((r["kind"], r["name"], r["version"]), {})[r["outcome"]] = int(r["number"])
    return found


def used(database: Database, kind: Kind, name: str, day: str) -> tuple[int, int, float]:
    """Return what finished jobs of a day (UTC) took: their number, their tokens, their cost in USD."""
    (r,) = database.rows(
        "SELECT COUNT(*) AS jobs, COALESCE(SUM(prompt_tokens + completion_tokens), 0) AS tokens,"
        " COALESCE(SUM(cost_usd), 0.0) AS usd FROM turn_jobs"
        " WHERE kind = ? AND name = ? AND state IN ('done', 'failed') AND ended >= ? AND ended < ?",
        kind,
        name,
        f"{day}T00:00:00",
        f"{day}T99",
    )
    return int(r["jobs"]), int(r["tokens"]), float(r["usd"])


def answers(database: Database, name: str, version: str, limit: int = 10_000) -> list[tuple[str, str]]:
    """Return the live and the shadow's answer of the finished jobs of a shadow, newest first."""
    query = (
        "SELECT turns.answer AS live, turn_jobs.answer AS shadow FROM turn_jobs"
        " JOIN turns ON turns.row = turn_jobs.turn WHERE kind = 'shadow' AND name = ? AND version = ?"
        " AND state = 'done' ORDER BY turn_jobs.created DESC LIMIT ?"
    )
    return [(r["live"], r["shadow"]) for r in database.rows(query, name, version, limit)]


def users(database: Database, turns: Sequence[str]) -> dict[str, str]:
    """Return the known users of turns that have jobs; anonymous ones are left out."""
    wanted = set(turns)
    query = (
        "SELECT DISTINCT turns.id AS id, turns.user AS name FROM turn_jobs JOIN turns ON turns.row = turn_jobs.turn"
        " WHERE turns.user <> 'anonymous'"
    )
    return {r["id"]: r["name"] for r in database.rows(query) if r["id"] in wanted}


def release(database: Database, owner: str) -> None:
    """End the leases of a process that stops, so that another one takes its pending jobs over at once."""
    now = _stamp(database.now())
    update = "UPDATE turn_jobs SET lease = ?, attempts = attempts - 1 WHERE owner = ? AND state = 'pending'"

    def write(connection: Any) -> None:
        connection.execute(update, (now, owner))

    database.write(write).result()


def _jobs(
    database: Database,
    *,
    id: str | None = None,
    kind: str | None = None,
    name: str | None = None,
    version: str | None = None,
    turn: str | None = None,
    limit: int = 1000,
) -> list[TurnJob]:
    given = [value for value in (id, kind, name, version, turn) for _ in range(2)]
    return [_job(r) for r in database.rows(_SELECT, *given, limit)]


def _job(r: Any) -> TurnJob:
    outcome = None
    if r["state"] != "pending":
        outcome = Outcome(r["state"], *(r[name] for name in OUTCOME))
    return TurnJob(
        r["id"],
        r["kind"],
        r["name"],
        r["version"],
        r["turn_id"],
        datetime.fromisoformat(r["created"]),
        r["attempts"],
        r["state"],
        outcome,
    )


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
