"""How long turns are kept: deletion of what is older than a time, by hand or while a server runs.

In: a database and an age. Out: how many turns and conversations were deleted, with everything that hangs on the turns.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from demeanor.core.errors import DemeanorError, UsageError
from demeanor.store.database import Database
from demeanor.store.lineage import BATCH, delete_turns

log = logging.getLogger("demeanor.store")
EVERY_S = 3600.0
AGES = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def age(text: str) -> timedelta:
    """Parse an age such as 90d, 12h or 2w. Raises UsageError."""
    found = re.fullmatch(r"(\d{1,6})([hdw])", text.strip())
    if found is None or int(found[1]) == 0:
        raise UsageError(f"got '{text}', wanted an age such as 90d, 12h or 2w")
    return int(found[1]) * AGES[found[2]]


def old(database: Database, older_than: timedelta, *, keep_rated: bool = False) -> dict[str, int]:
    """Return how many turns and conversations are older than an age."""
    before = _before(database, older_than)
    turns = database.rows(f"SELECT count(*) FROM turns WHERE {_OLD[keep_rated]}", before)[0][0]  # noqa: S608
    conversations = database.rows("SELECT count(*) FROM conversations WHERE updated < ?", before)[0][0]
    return {"turns": int(turns), "conversations": int(conversations)}


_OLD = {
    False: "finished < ?",
    True: "finished < ? AND NOT EXISTS (SELECT 1 FROM feedback WHERE feedback.turn = turns.row)",
}


def prune(
    database: Database,
    older_than: timedelta,
    *,
    keep_rated: bool = False,
    told: Callable[[int], None] = lambda turns: None,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, int]:
    """Delete turns that ended, and conversations of the chat page that changed, longer ago than an age; return how many.

    With `keep_rated` turns with feedback stay. Batches are transactions of their own: stopped in between, nothing is half deleted.
    """
    before = _before(database, older_than)
    query = f"SELECT row FROM turns WHERE {_OLD[keep_rated]} ORDER BY row LIMIT ?"  # noqa: S608
    turns = 0
    while not stopped() and (batch := database.rows(query, before, BATCH)):
        delete_turns(database, [row[0] for row in batch])
        told(turns := turns + len(batch))
    delete = "DELETE FROM conversations WHERE updated < ?"
    conversations = database.write(lambda c: int(c.execute(delete, (before,)).rowcount)).result()
    if turns or conversations:
        database.backend.purge()
    return {"turns": turns, "conversations": conversations}


def _before(database: Database, older_than: timedelta) -> str:
    try:
        return (database.now().astimezone(UTC) - older_than).isoformat()
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC).isoformat()


class Pruning:
    """Prunes a database every hour, in a thread of its own, until `close`."""

    def __init__(
        self, database: Database, older_than: timedelta, keep_rated: bool, every_s: float = EVERY_S
    ) -> None:
        self._database, self._older_than, self._keep_rated = database, older_than, keep_rated
        self._every_s, self._stop = every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-pruning", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                done = prune(
                    self._database, self._older_than, keep_rated=self._keep_rated, stopped=self._stop.is_set
                )
                if any(done.values()):
                    log.warning("retention: deleted %s", ", ".join(f"{n} {what}" for what, n in done.items()))
            except DemeanorError as error:  # tried again later
                log.error("retention: nothing was deleted: %s", error)
            if self._stop.wait(self._every_s):
                return
