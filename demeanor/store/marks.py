"""Marks: what a person says about a rule's decision on a recorded turn (a false positive, a miss, ...).

In: a turn's id, a rule, a mark. Out: marks. One mark for each turn and rule: a new one replaces it. They go with their turns.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from demeanor.store.backends import Connection
from demeanor.store.database import Database

MarkKind: TypeAlias = Literal["false_positive", "true_positive", "false_negative", "true_negative"]


@dataclass(frozen=True, slots=True)
class RuleMark:
    """A person's word on rule `rule` of a turn; `rule` is "" for the whole policy (a miss of every rule)."""

    turn: str
    rule: str
    mark: MarkKind
    note: str
    user: str
    created: datetime


def put(
    database: Database, turn: str, rule: str, mark: MarkKind | None, *, user: str, note: str = ""
) -> Awaitable[bool]:
    """Set the mark of a rule on a turn, or with None take it back; False if the turn is not recorded."""
    created = database.now().astimezone(UTC).isoformat()

    def write(connection: Connection) -> bool:
        found = connection.execute(
            "SELECT row FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1", (turn,)
        ).fetchone()
        if found is None:
            return False
        connection.execute("DELETE FROM marks WHERE turn = ? AND rule = ?", (found[0], rule))
        if mark is not None:
            connection.execute(
                "INSERT INTO marks (turn, rule, mark, note, user, created) VALUES (?, ?, ?, ?, ?, ?)",
                (found[0], rule, mark, note, user, created),
            )
        return True

    return database.queue(write)


def marks(database: Database, turn: str | None = None) -> list[RuleMark]:
    """Return the marks of one turn, or all; oldest first."""
    found = database.rows(
        "SELECT turns.id, marks.* FROM marks JOIN turns ON turns.row = marks.turn"
        " WHERE ? IS NULL OR turns.id = ? ORDER BY marks.created, marks.rule",
        turn,
        turn,
    )
    return [
        RuleMark(r["id"], r["rule"], r["mark"], r["note"], r["user"], datetime.fromisoformat(r["created"]))
        for r in found
    ]
