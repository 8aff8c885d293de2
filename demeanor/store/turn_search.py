"""Recorded turns searched for people: by words, user, variant, rule, feedback, marks and time; and what rules did to turns.

In: filters. Out: short summaries, newest first, and hits of rules. Words are looked for in conversations and answers, in any case.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from demeanor.store.database import Database

POLICY_EVENTS = ("RuleHit", "Refusal", "LeftOut")
MOST_HITS = 50_000


REFUSED: dict[Any, str] = {True: "refused_by IS NOT NULL", False: "refused_by IS NULL"}
RATED: dict[Any, str] = {
    "up": "EXISTS (SELECT 1 FROM feedback f WHERE f.turn = turns.row AND f.value > 0)",
    "down": "EXISTS (SELECT 1 FROM feedback f WHERE f.turn = turns.row AND f.value < 0)",
    "any": "EXISTS (SELECT 1 FROM feedback f WHERE f.turn = turns.row)",
    "none": "NOT EXISTS (SELECT 1 FROM feedback f WHERE f.turn = turns.row)",
    "corrected": "EXISTS (SELECT 1 FROM feedback f WHERE f.turn = turns.row AND f.corrected IS NOT NULL)",
}
MARKED: dict[Any, str] = {
    True: "EXISTS (SELECT 1 FROM marks m WHERE m.turn = turns.row)",
    False: "NOT EXISTS (SELECT 1 FROM marks m WHERE m.turn = turns.row)",
}


@dataclass(frozen=True, slots=True)
class TurnFilter:
    """Which turns; a filter that is None lets every turn pass. `before`: only turns older than this row; `stack_key`: the
    key or its beginning."""

    query: str = ""
    id: str | None = None
    user: str | None = None
    variant: str | None = None
    stack_key: str | None = None
    rule: str | None = None
    refused: bool | None = None
    rated: Literal["up", "down", "any", "none", "corrected"] | None = None
    marked: bool | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: int | None = None


@dataclass(frozen=True, slots=True)
class TurnSummary:
    """A turn in a list; `question` is the last user message, `rating` the mean of its feedback."""

    row: int
    id: str
    started: datetime
    finished: datetime
    user: str
    variant: str
    stack_key: str
    question: str
    answer: str
    finish_reason: str | None
    refused_by: str | None
    rule: str | None
    prompt_tokens: int
    completion_tokens: int
    rating: float | None
    marks: int


@dataclass(frozen=True, slots=True)
class PolicyEvent:
    """What a rule did to a turn: `kind` is RuleHit, Refusal or LeftOut, `event` its fields."""

    turn: str
    started: datetime
    kind: str
    event: dict[str, Any]


def search(database: Database, wanted: TurnFilter, *, limit: int = 50) -> list[TurnSummary]:
    """Return the newest turns that pass the filter."""
    clauses, values = _where(wanted)
    found = database.rows(
        "SELECT turns.*, (SELECT AVG(f.value) FROM feedback f WHERE f.turn = turns.row) AS rating,"  # noqa: S608
        " (SELECT COUNT(*) FROM marks m WHERE m.turn = turns.row) AS marked"
        f" FROM turns WHERE {' AND '.join(clauses)} ORDER BY turns.row DESC LIMIT ?",
        *values,
        limit,
    )
    return [_summary(row) for row in found]


def policy_events(database: Database, since: datetime | None = None) -> list[PolicyEvent]:
    """Return what rules did to turns, newest first, at most MOST_HITS."""
    found = database.rows(
        "SELECT turns.id, turns.started, e.kind, e.event FROM events e JOIN turns ON turns.row = e.turn"
        " WHERE e.kind IN (?, ?, ?) AND turns.started >= ? ORDER BY turns.row DESC, e.number LIMIT ?",
        *POLICY_EVENTS,
        _stamp(since) if since else "",
        MOST_HITS,
    )
    return [
        PolicyEvent(r["id"], datetime.fromisoformat(r["started"]), r["kind"], json.loads(r["event"]))
        for r in found
    ]


def count(database: Database, since: datetime | None = None) -> int:
    """Return the number of turns."""
    found = database.rows(
        "SELECT COUNT(*) AS n FROM turns WHERE started >= ?", _stamp(since) if since else ""
    )
    return int(found[0]["n"])


def variants(database: Database) -> list[str]:
    """Return the model ids that answered turns."""
    return [r["variant"] for r in database.rows("SELECT DISTINCT variant FROM turns ORDER BY variant")]


def _where(wanted: TurnFilter) -> tuple[list[str], list[Any]]:
    """The conditions of a filter, with their values."""
    clauses, values = ["1 = 1"], list[Any]()

    def add(clause: str, *given: Any) -> None:
        clauses.append(clause)
        values.extend(given)

    if wanted.query:
        plain, escaped = _pattern(wanted.query), _pattern(json.dumps(wanted.query)[1:-1])
        add(
            "(LOWER(answer) LIKE ? ESCAPE '\\' OR LOWER(turn) LIKE ? ESCAPE '\\' OR id = ?)",
            plain,
            escaped,
            wanted.query,
        )
    for column, value in (
        ("id", wanted.id),
        ("user", wanted.user),
        ("variant", wanted.variant),
    ):
        if value is not None:
            add(f"{column} = ?", value)
    if wanted.stack_key is not None:
        add("SUBSTR(stack_key, 1, ?) = ?", len(wanted.stack_key), wanted.stack_key)
    if wanted.rule is not None:
        named = _pattern(f'"rule": {json.dumps(wanted.rule)}', fold=False)
        add(
            "EXISTS (SELECT 1 FROM events e WHERE e.turn = turns.row AND e.kind IN (?, ?, ?)"
            " AND e.event LIKE ? ESCAPE '\\')",
            *POLICY_EVENTS,
            named,
        )
    kinds: tuple[tuple[dict[Any, str], bool | str | None], ...] = (
        (REFUSED, wanted.refused),
        (RATED, wanted.rated),
        (MARKED, wanted.marked),
    )
    for filters, chosen in kinds:
        if chosen is not None:
            add(filters[chosen])
    if wanted.since is not None:
        add("started >= ?", _stamp(wanted.since))
    if wanted.until is not None:
        add("started < ?", _stamp(wanted.until))
    if wanted.before is not None:
        add("turns.row < ?", wanted.before)
    return clauses, values


def _pattern(text: str, *, fold: bool = True) -> str:
    """A LIKE pattern of texts that contain this one."""
    escaped = "".join(f"\\{c}" if c in "\\%_" else c for c in (text.lower() if fold else text))
    return f"%{escaped}%"


def _summary(row: Any) -> TurnSummary:
    messages: Sequence[dict[str, Any]] = json.loads(row["turn"])["messages"]
    question = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
    return TurnSummary(
        row["row"],
        row["id"],
        datetime.fromisoformat(row["started"]),
        datetime.fromisoformat(row["finished"]),
        row["user"],
        row["variant"],
        row["stack_key"],
        question,
        row["answer"],
        row["finish_reason"],
        row["refused_by"],
        row["rule"],
        row["prompt_tokens"],
        row["completion_tokens"],
        row["rating"],
        row["marked"],
    )


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
