"""To which layer complaints were routed, and the repair that worked: one line a turn and stack.

In: a label with its evidence. Out: the same. A row is deleted with its turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from demeanor.store.database import Database


@dataclass(frozen=True, slots=True)
class StoredRouting:
    """A complaint's label; `layer` is the layer's name in the stack, `repair` what fixed it (empty: nothing did)."""

    turn: str
    stack_key: str
    label: str
    layer: str
    repair: str
    evidence: Mapping[str, Any]
    created: datetime


def save(
    database: Database,
    stack_key: str,
    rows: Sequence[tuple[str, str, str, str, Mapping[str, Any]]],
) -> None:
    """Write (turn, label, layer, repair, evidence), over what was written of that turn and stack before."""
    now = database.now().astimezone(UTC).isoformat()

    def write(connection: Any) -> None:
        for turn, label, layer, repair, evidence in rows:
            connection.execute(
                "INSERT INTO routed_complaints (turn, stack_key, label, layer, repair, evidence, created)"
                " SELECT row, ?, ?, ?, ?, ?, ? FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1"
                " ON CONFLICT (turn, stack_key) DO UPDATE SET label = excluded.label, layer = excluded.layer,"
                " repair = excluded.repair, evidence = excluded.evidence, created = excluded.created",
                (stack_key, label, layer, repair, json.dumps(evidence), now, turn),
            )

    database.write(write).result()


def routings(database: Database, turn: str | None = None) -> list[StoredRouting]:
    """Return all labels, or those of a turn, oldest first."""
    query = (
        "SELECT turns.id AS id, routed_complaints.stack_key AS stack_key, label, layer, repair, evidence, created"
        " FROM routed_complaints JOIN turns ON turns.row = routed_complaints.turn"
        " WHERE ? IS NULL OR turns.id = ? ORDER BY created, turns.row"
    )
    return [
        StoredRouting(
            r["id"],
            r["stack_key"],
            r["label"],
            r["layer"],
            r["repair"],
            json.loads(r["evidence"]),
            datetime.fromisoformat(r["created"]),
        )
        for r in database.rows(query, turn, turn)
    ]


def labels(database: Database) -> dict[str, str]:
    """Return the last label of every routed turn."""
    return {r.turn: r.label for r in routings(database)}
