"""Where recorded words went, and how a user is forgotten: turns, what hangs on them, and the names of what was made of them.

In: a database, a user. Out: artefacts (preference sets and other files) that hold words of the user's turns; counts of what
was deleted. Whoever makes something of recorded turns calls `note`. Trained runs are found by the content of their data
(cli/storing.py). A forgotten user's artefacts stay listed without the name, until somebody has dealt with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC
from itertools import islice

from demeanor.store.backends import Connection
from demeanor.store.database import Database

BATCH = 500
OF_TURNS = (
    "events",
    "feedback",
    "experiment_turns",
    "turn_jobs",
    "routed_complaints",
    "comparisons",
    "marks",
)
OF_USERS = ("conversations", "waiting_approvals")


@dataclass(frozen=True, slots=True)
class DerivedArtefact:
    """A file that was made of recorded turns: its `content` is a hash (`stack.file_hash`), by which runs that read it are found."""

    kind: str
    artefact: str
    content: str
    created: str
    num_turns: int
    forgotten: str | None = None


def note(database: Database, kind: str, artefact: str, content: str, turn_ids: Iterable[str]) -> int:
    """Note that an artefact holds words of turns; returns how many of them are recorded here."""
    created = database.now().astimezone(UTC).isoformat()
    insert = (
        "INSERT INTO derived (turn, user, kind, artefact, content, created)"
        " SELECT id, user, ?, ?, ?, ? FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1"
        " ON CONFLICT (turn, kind, artefact, content) DO NOTHING"
    )

    def write(ids: list[str]) -> Callable[[Connection], int]:
        def job(connection: Connection) -> int:
            values = (kind, artefact, content, created)
            return sum(max(0, connection.execute(insert, (*values, turn)).rowcount) for turn in ids)

        return job

    return sum(database.write(write(ids)).result() for ids in _batches(dict.fromkeys(turn_ids)))


def where(database: Database, user: str) -> list[DerivedArtefact]:
    """Return what was made of a user's turns, oldest first."""
    query = (
        "SELECT kind, artefact, content, min(created) AS created, count(*) AS num_turns FROM derived"
        " WHERE user = ? AND forgotten IS NULL GROUP BY kind, artefact, content ORDER BY 4, artefact"
    )
    return [DerivedArtefact(*row) for row in database.rows(query, user)]


def forgotten(database: Database) -> list[DerivedArtefact]:
    """Return artefacts that held words of users who were forgotten since, oldest first."""
    query = (
        "SELECT kind, artefact, content, min(created) AS created, count(*) AS num_turns, max(forgotten)"
        " FROM derived WHERE forgotten IS NOT NULL GROUP BY kind, artefact, content ORDER BY 6, artefact"
    )
    return [DerivedArtefact(*row) for row in database.rows(query)]


def done(database: Database, artefact: str) -> int:
    """Forget that an artefact held words of forgotten users: it was rebuilt or deleted. Returns the turns it was noted for."""
    delete = "DELETE FROM derived WHERE artefact = ? AND forgotten IS NOT NULL"
    return database.write(lambda c: int(c.execute(delete, (artefact,)).rowcount)).result()


def users(database: Database) -> list[str]:
    """Return everybody of whom something is stored."""
    query = (
        "SELECT user FROM turns UNION SELECT user FROM feedback UNION SELECT user FROM conversations"
        " UNION SELECT user FROM comparisons UNION SELECT user FROM waiting_approvals"
        " UNION SELECT user FROM derived WHERE forgotten IS NULL"
    )
    return sorted(row[0] for row in database.rows(query))


def turn_ids(database: Database, user: str) -> frozenset[str]:
    """Return the ids of a user's turns, those that are only known by what was made of them included."""
    query = "SELECT id FROM turns WHERE user = ? UNION SELECT turn FROM derived WHERE user = ?"
    return frozenset(row[0] for row in database.rows(query, user, user))


def stored(database: Database, user: str) -> dict[str, int]:
    """Return how many rows of each kind belong to a user or hang on the user's turns."""
    counts = {"turns": database.rows("SELECT count(*) FROM turns WHERE user = ?", user)[0][0]}
    of_user = " IN (SELECT row FROM turns WHERE user = ?)"
    for table in OF_TURNS:
        if table == "comparisons":
            held, values = f"first{of_user} OR second{of_user} OR user = ?", (user, user, user)
        elif table == "feedback":
            held, values = f"turn{of_user} OR user = ?", (user, user)  # type: ignore[assignment]
        else:
            held, values = f"turn{of_user}", (user,)  # type: ignore[assignment]
        query = f"SELECT count(*) FROM {table} WHERE {held}"  # noqa: S608  # names of our own tables
        counts[table] = database.rows(query, *values)[0][0]
    for table in OF_USERS:
        query = f"SELECT count(*) FROM {table} WHERE user = ?"  # noqa: S608
        counts[table] = database.rows(query, user)[0][0]
    return {name: int(count) for name, count in counts.items()}


def forget(database: Database, user: str, told: Callable[[int], None] = lambda turns: None) -> dict[str, int]:
    """Delete a user's turns with what hangs on them, feedback, votes and conversations; return how many rows of each.

    What was made of the turns stays listed in `forgotten`, without the user's name. `told` gets the number of turns
    after each batch; stopped in between, a second call goes on.
    """
    counts = stored(database, user)
    now = database.now().astimezone(UTC).isoformat()

    def rest(connection: Connection) -> None:
        for table in ("feedback", "comparisons", *OF_USERS):
            connection.execute(f"DELETE FROM {table} WHERE user = ?", (user,))  # noqa: S608
        connection.execute("UPDATE derived SET user = '', forgotten = ? WHERE user = ?", (now, user))

    deleted = 0
    while batch := database.rows("SELECT row FROM turns WHERE user = ? ORDER BY row LIMIT ?", user, BATCH):
        delete_turns(database, [row[0] for row in batch])
        told(deleted := deleted + len(batch))
    database.write(rest).result()
    database.backend.purge()
    return counts


def delete_turns(database: Database, rows: Collection[int]) -> None:
    """Delete turns by their rows, with everything that hangs on them, in one transaction."""
    values = [(row,) for row in rows]
    waiting = "DELETE FROM waiting_approvals WHERE turn IN (SELECT id FROM turns WHERE row = ?)"

    def write(connection: Connection) -> None:
        connection.executemany(waiting, values)
        connection.executemany("DELETE FROM turns WHERE row = ?", values)

    database.write(write).result()


def forget_labels(database: Database, turns: Collection[str]) -> dict[str, int]:
    """Delete items of labelling queues that show one of these turns, with their slots and labels; return how many."""
    items = [
        row["id"]
        for row in database.rows("SELECT id, answers FROM label_items")
        if any(answer.get("turn_id") in turns for answer in json.loads(row["answers"]))
    ]
    counts = {"label_items": len(items), "labels": 0}

    def job(ids: list[str]) -> Callable[[Connection], int]:
        def write(connection: Connection) -> int:
            values = [(item,) for item in ids]
            labels = sum(
                connection.execute("DELETE FROM labels WHERE item = ?", value).rowcount for value in values
            )
            connection.executemany("DELETE FROM label_slots WHERE item = ?", values)
            connection.executemany("DELETE FROM label_items WHERE id = ?", values)
            return labels

        return write

    for ids in _batches(items):
        counts["labels"] += database.write(job(ids)).result()
    database.backend.purge()
    return counts


def _batches(items: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch
