"""Comparisons: which of two recorded answers a person found better; `first` is the one that stood left.

In: ids of two turns and a verdict. Out: comparisons with the ids of their turns. They go with their turns.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypeAlias, get_args

from demeanor.core.errors import UsageError, unknown
from demeanor.store.backends import Connection
from demeanor.store.database import Database

ComparisonVerdict: TypeAlias = Literal["first", "second", "tie", "both_bad"]


@dataclass(frozen=True, slots=True)
class StoredComparison:
    """A vote between the answers of turns `first` (left) and `second` (right); `blind`: the names were hidden."""

    id: str
    first: str
    second: str
    verdict: ComparisonVerdict
    blind: bool
    comment: str
    user: str
    created: datetime


def add(
    database: Database,
    first: str,
    second: str,
    verdict: str,
    *,
    user: str,
    blind: bool = False,
    comment: str = "",
) -> Awaitable[str | None]:
    """Add a comparison; its id, or None if one of the turns is not recorded. Raises UsageError for another verdict."""
    if verdict not in get_args(ComparisonVerdict):
        raise UsageError(
            f"comparison: verdict: {unknown(verdict, get_args(ComparisonVerdict), noun='verdict')}"
        )
    id = f"cmp_{uuid.uuid4().hex}"
    created = database.now().astimezone(UTC).isoformat()

    def write(connection: Connection) -> str | None:
        query = "SELECT row FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1"
        rows = [connection.execute(query, (turn,)).fetchone() for turn in (first, second)]
        if None in rows:
            return None
        connection.execute(
            "INSERT INTO comparisons (id, created, user, first, second, verdict, blind, comment)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (id, created, user, rows[0][0], rows[1][0], verdict, int(blind), comment),
        )
        return id

    return database.queue(write)


def comparisons(database: Database, turn: str | None = None) -> list[StoredComparison]:
    """Return the comparisons of one turn, or all; oldest first."""
    found = database.rows(
        "SELECT c.*, a.id AS first_id, b.id AS second_id FROM comparisons c"
        " JOIN turns a ON a.row = c.first JOIN turns b ON b.row = c.second"
        " WHERE ? IS NULL OR a.id = ? OR b.id = ? ORDER BY c.created, c.id",
        turn,
        turn,
        turn,
    )
    return [
        StoredComparison(
            r["id"],
            r["first_id"],
            r["second_id"],
            r["verdict"],
            bool(r["blind"]),
            r["comment"],
            r["user"],
            datetime.fromisoformat(r["created"]),
        )
        for r in found
    ]
