"""Experiments in the database: what was declared when one began, and which turn of which user each arm answered.

In: declarations as JSON, exposures with scores. Out: the same, in the order in which turns ended. It knows no statistics: a user is a
`unit`, a hash that the caller makes. Rows of a turn are deleted with it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from demeanor.core.exposures import Exposure
from demeanor.store.database import Database


@dataclass(frozen=True, slots=True)
class StoredExperiment:
    """One run of an experiment: `id` hashes its declaration, so another score, share or arm is another run."""

    id: str
    name: str
    declared: Mapping[str, Any]
    started: datetime
    stopped: datetime | None
    reason: str


def register(database: Database, id: str, name: str, declared: Mapping[str, Any]) -> Awaitable[None]:
    """Begin a run that is not known yet, and end other runs of its name: their declaration was replaced."""
    now = _stamp(database.now())

    def write(connection: Any) -> None:
        connection.execute(
            "UPDATE experiments SET stopped = ?, reason = ? WHERE name = ? AND id <> ? AND stopped IS NULL",
            (now, f"replaced by {id}", name, id),
        )
        connection.execute(
            "INSERT INTO experiments (id, name, declared, started, stopped, reason) VALUES (?, ?, ?, ?, NULL, '')"
            " ON CONFLICT (id) DO NOTHING",
            (id, name, json.dumps(declared), now),
        )

    return database.queue(write)


def experiments(database: Database) -> list[StoredExperiment]:
    """Return all runs, oldest first."""
    found = database.rows("SELECT * FROM experiments ORDER BY started, id")
    return [
        StoredExperiment(
            r["id"],
            r["name"],
            json.loads(r["declared"]),
            datetime.fromisoformat(r["started"]),
            datetime.fromisoformat(r["stopped"]) if r["stopped"] else None,
            r["reason"],
        )
        for r in found
    ]


def running(database: Database) -> frozenset[str]:
    """Return the ids of the runs that nobody has stopped."""
    return frozenset(r["id"] for r in database.rows("SELECT id FROM experiments WHERE stopped IS NULL"))


def stopped(database: Database) -> frozenset[str]:
    """Return the ids of the runs that were stopped or replaced; they do not begin again."""
    return frozenset(r["id"] for r in database.rows("SELECT id FROM experiments WHERE stopped IS NOT NULL"))


def stop(database: Database, id: str, reason: str) -> bool:
    """End a run; False if it has ended before."""
    now = _stamp(database.now())
    update = "UPDATE experiments SET stopped = ?, reason = ? WHERE id = ? AND stopped IS NULL"
    return database.write(lambda c: int(c.execute(update, (now, reason, id)).rowcount)).result() > 0


def expose(
    database: Database, id: str, turn: str, unit: str, arm: int, value: float | None
) -> Awaitable[None]:
    """Add a recorded turn to a run; does nothing if the turn is not recorded or there already."""
    now = _stamp(database.now())

    def write(connection: Any) -> None:
        connection.execute(
            "INSERT INTO experiment_turns (experiment, turn, unit, arm, created, value)"
            " SELECT ?, row, ?, ?, ?, ? FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1"
            " ON CONFLICT (experiment, turn) DO NOTHING",
            (id, unit, arm, now, value, turn),
        )

    return database.queue(write)


def exposures(database: Database, id: str, evaluator: str | None = None) -> list[Exposure]:
    """Return the turns of a run with their feedback, in the order in which they ended.

    With an `evaluator`, their scores are the first ones that it gave.
    """
    given: dict[str, tuple[datetime, float]] = {}
    query = (
        "SELECT turns.id AS id, turn_jobs.ended AS ended, turn_jobs.value AS value FROM experiment_turns"
        " JOIN turns ON turns.row = experiment_turns.turn JOIN turn_jobs ON turn_jobs.turn = turns.row"
        " WHERE experiment_turns.experiment = ? AND turn_jobs.kind = 'evaluator' AND turn_jobs.name = ?"
        " AND turn_jobs.state = 'done' AND turn_jobs.value IS NOT NULL ORDER BY turn_jobs.ended"
    )
    for r in database.rows(query, id, evaluator) if evaluator else ():
        given.setdefault(r["id"], (datetime.fromisoformat(r["ended"]), r["value"]))
    ratings: dict[str, list[tuple[datetime, float]]] = {}
    query = (
        "SELECT turns.id AS id, feedback.created AS created, feedback.value AS value FROM experiment_turns"
        " JOIN turns ON turns.row = experiment_turns.turn JOIN feedback ON feedback.turn = turns.row"
        " WHERE experiment_turns.experiment = ? ORDER BY feedback.row"
    )
    for r in database.rows(query, id):
        ratings.setdefault(r["id"], []).append((datetime.fromisoformat(r["created"]), r["value"]))
    query = (
        "SELECT turns.id AS id, unit, arm, created, value FROM experiment_turns"
        " JOIN turns ON turns.row = experiment_turns.turn WHERE experiment = ? ORDER BY created, turns.row"
    )
    found = []
    for r in database.rows(query, id):
        created = datetime.fromisoformat(r["created"])
        scored, value = (created, r["value"]) if evaluator is None else given.get(r["id"], (None, None))
        scored = None if value is None else scored
        rated = tuple(ratings.get(r["id"], ()))
        found.append(Exposure(r["id"], r["unit"], r["arm"], created, value, scored, rated))
    return found


def experiment_of(database: Database, turn: str) -> list[tuple[str, int]]:
    """Return the names of the experiments that a turn is part of, each with the number of its arm."""
    query = (
        "SELECT experiments.name AS name, arm FROM experiment_turns"
        " JOIN experiments ON experiments.id = experiment_turns.experiment"
        " JOIN turns ON turns.row = experiment_turns.turn WHERE turns.id = ? ORDER BY experiments.started"
    )
    return [(r["name"], r["arm"]) for r in database.rows(query, turn)]


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
