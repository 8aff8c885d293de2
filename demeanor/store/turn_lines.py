"""Recorded turns as JSON lines: each turn with its events and feedback, oldest first.

In: a database and a file. Out: rows in the file. It is written beside as FILE.part and renamed when it is whole; a stopped
export goes on behind the last whole line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from demeanor.core.errors import DataError
from demeanor.store.backends import StoredRow
from demeanor.store.database import Database

PAGE = 200


def count(database: Database, user: str | None = None) -> int:
    """Return how many turns an export would hold."""
    return int(database.rows("SELECT count(*) FROM turns WHERE ? IS NULL OR user = ?", user, user)[0][0])


def write(
    database: Database, path: Path, user: str | None = None, told: Callable[[int], None] = lambda turns: None
) -> int:
    """Write all turns, or those of one user, to a file; return how many it holds."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)  # turns hold what people wrote
    with os.fdopen(descriptor, "r+b") as file:
        turns, last = _whole_lines(file, part)
        told(turns)
        for page in _pages(database, user, last):
            file.write(b"".join(json.dumps(row).encode() + b"\n" for row in page))
            file.flush()
            told(turns := turns + len(page))
        os.fsync(file.fileno())
    os.replace(part, path)
    return turns


def _whole_lines(file: BinaryIO, part: Path) -> tuple[int, int]:
    """Cut a line that is not whole; return the number of lines and the row of the last."""
    lines = last = end = 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            last = json.loads(line)["row"]
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{part}: line {lines + 1} is not of an export; delete the file to begin anew"
            ) from None
        lines, end = lines + 1, end + len(line)
    file.truncate(end)
    file.seek(end)
    return lines, last


def _pages(database: Database, user: str | None, last: int) -> Iterator[list[dict[str, Any]]]:
    query = "SELECT * FROM turns WHERE row > ? AND (? IS NULL OR user = ?) ORDER BY row LIMIT ?"
    while found := database.rows(query, last, user, user, PAGE):
        yield [_turn(database, row) for row in found]
        last = found[-1]["row"]


def _turn(database: Database, row: StoredRow) -> dict[str, Any]:
    events = database.rows("SELECT kind, by, event FROM events WHERE turn = ? ORDER BY number", row["row"])
    feedback = database.rows(
        "SELECT created, user, value, comment, corrected FROM feedback WHERE turn = ? ORDER BY row",
        row["row"],
    )
    columns = dict(zip(row.keys(), row))
    return {
        **columns,
        "turn": json.loads(row["turn"]),
        "events": [{"kind": e["kind"], "by": e["by"], "event": json.loads(e["event"])} for e in events],
        "feedback": [dict(zip(f.keys(), f)) for f in feedback],
    }
