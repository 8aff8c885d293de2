"""The database of recorded turns, feedback and keys, in a SQLite file or in PostgreSQL: written by one thread, read by many.

In: turns with their events, feedback. Out: stored turns. Writes are grouped into transactions and durable
when awaited (store/writer.py). What differs between the two is in store/backends.py, the schema in
store/migrations.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import TypeAdapter

from demeanor.core import types
from demeanor.core.errors import DataError, DemeanorError, StoreError
from demeanor.core.types import Completion, Done, Event, RatedTurn, Text, Turn, fold
from demeanor.store.backends import SQLITE, Backend, Connection, Sqlite, StoredRow, backend_of
from demeanor.store.backends import storable as storable
from demeanor.store.writer import Job, Writer

EVENTS: dict[str, TypeAdapter[Event]] = {cls.__name__: TypeAdapter(cls) for cls in get_args(types.Event)}
_TURN = TypeAdapter(Turn)


def turn_json(turn: Turn) -> str:
    """Return a turn as ASCII JSON."""
    return _json(turn)


def turn_of(text: str) -> Turn:
    """Parse what `turn_json` wrote."""
    return _TURN.validate_python(json.loads(text))


def event_rows(events: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Return events as (kind, by, JSON), with neighbouring Texts of one layer joined."""
    joined: list[Any] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text) and last.by == event.by:
            joined[-1] = Text(last.text + event.text, event.by, last.logprobs + event.logprobs)
        else:
            joined.append(event)
    return [(type(e).__name__, str(getattr(e, "by", "")), _json(e)) for e in joined]


def event_of(kind: str, text: str) -> Event | None:
    """Parse the event stored under `kind`; None for an unknown kind."""
    adapter = EVENTS.get(kind)
    return None if adapter is None else adapter.validate_python(json.loads(text))


def _json(value: Any) -> str:
    is_object = dataclasses.is_dataclass(value) and not isinstance(value, type)
    plain = dataclasses.asdict(value) if is_object else repr(value)
    return json.dumps(plain, default=str)


T = TypeVar("T")
CHECK_S = 1.0
READ_S = 2.0  # the longest read of a request from another machine
MOST_READERS = 4


@dataclass(frozen=True, slots=True)
class Stored:
    """A recorded turn; `finish_reason` is None if it broke off."""

    turn: Turn
    events: tuple[Event, ...]
    started: datetime
    finished: datetime
    finish_reason: str | None

    @property
    def completion(self) -> Completion:
        return fold(list(self.events))


@dataclass(frozen=True, slots=True)
class Feedback:
    """A user's rating of an answer, from -1 (bad) to 1 (good), with an optional corrected answer."""

    turn_id: str
    value: float
    comment: str
    user: str
    created: datetime
    corrected: str | None = None
    reasons: tuple[str, ...] = ()


def open_url(url: str, *, root: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Database:
    """Open or create `sqlite:///PATH` (relative to `root`), or open `postgresql://USER@HOST/DATABASE`; `${NAME}` in
    it is an environment variable. Raises DemeanorError if that fails."""
    return Database(backend_of(url, root), now)


async def locked(databases: Iterable[Database]) -> str | None:
    """Say why one of the databases cannot be written now; None if all can."""
    for database in databases:
        try:
            await database.check()
        except DemeanorError as error:
            return f"database: {error}"
    return None


def holds_turns(path: Path) -> bool:
    """True if the file has a table of turns; it is opened read-only, so no table is created."""
    try:
        address = f"{path.resolve().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'turns'"
            return connection.execute(query).fetchone() is not None
    except sqlite3.Error:
        return False


def rated_turns(where: Path | str) -> list[RatedTurn]:
    """Return the finished turns with feedback of a database, an address or the path of a SQLite file; raises DataError if
    a file contains no turns."""
    address = str(where)
    if "://" not in address or address.startswith(SQLITE):
        path = Path(address.removeprefix(SQLITE))
        if not path.is_file():
            raise DataError(f"{path}: no such database; the `record` layer writes one")
        if not holds_turns(path):  # opening it would create empty tables
            raise DataError(f"{path}: holds no turns; wanted a database that the `record` layer wrote")
        address = f"{SQLITE}{path.resolve()}"
    store = open_url(address, root=Path.cwd())
    try:
        values: dict[str, list[float]] = {}
        for feedback in store.feedback():
            values.setdefault(feedback.turn_id, []).append(feedback.value)
        stored = [(store.turn(turn_id), sum(given) / len(given)) for turn_id, given in values.items()]
    finally:
        store.close()
    return [
        RatedTurn(turn.turn, turn.completion, (turn.finished - turn.started).total_seconds() * 1000, rating)
        for turn, rating in stored
        if turn is not None and turn.finish_reason is not None
    ]


class Database:
    """An open database; safe to use from several threads and event loops."""

    def __init__(
        self, where: Path | Backend, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Open a SQLite file, or whatever `where` connects to; raises DemeanorError if that fails."""
        self.backend: Backend = Sqlite(where) if isinstance(where, Path) else where
        self._now = now
        failures: tuple[type[Exception], ...] = (*self.backend.errors, DemeanorError)
        try:
            self._writer = Writer(self.backend)
        except failures as error:
            place = self.path or self.backend.name
            raise DemeanorError(f"{place}: {self.backend.reason(error)}") from None
        self._readers = Readers(self.backend)
        self._threads = ThreadPoolExecutor(MOST_READERS, "store-reader")

    @property
    def path(self) -> Path | None:
        """The file of a SQLite database."""
        return self.backend.path if isinstance(self.backend, Sqlite) else None

    def close(self) -> None:
        """Write the queued turns, then close."""
        self._writer.close()
        self._readers.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ---- turns ----

    def record(
        self, turn: Turn, events: Sequence[Event], started: datetime, finished: datetime
    ) -> Awaitable[None]:
        """Queue a turn; awaiting the result waits until it is durable. Raises StoreError if writing
        fails."""
        done = fold(list(events))
        ended = any(isinstance(e, Done) for e in events)
        row = [
            turn.id,
            _stamp(started),
            _stamp(finished),
            turn.user,
            turn.variant,
            turn.stack_key,
            turn_json(turn),
            done.text,
            done.finish_reason if ended else None,
            done.refusal.by if done.refusal else None,
            done.refusal.rule if done.refusal else None,
            done.prompt_tokens,
            done.completion_tokens,
            done.cost_usd,
        ]
        rows = event_rows(events)

        def write(connection: Connection) -> None:
            [(stored,)] = connection.execute(
                "INSERT INTO turns (id, started, finished, user, variant, stack_key, turn, answer,"
                " finish_reason, refused_by, rule, prompt_tokens, completion_tokens, cost_usd)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING row",
                row,
            ).fetchall()
            connection.executemany(
                "INSERT INTO events (turn, number, kind, by, event) VALUES (?, ?, ?, ?, ?)",
                [(stored, i, *r) for i, r in enumerate(rows)],
            )

        return asyncio.wrap_future(self._writer.submit(write))

    def turn(self, turn_id: str) -> Stored | None:
        """Return the turn of that id (the latest, if there are several)."""
        found = self.rows("SELECT * FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1", turn_id)
        return self._stored(found[0]) if found else None

    def find(self, turn_id: str) -> Stored | None:
        """Return the turn as `turn` does."""
        return self.turn(turn_id)

    async def forget(self, turn_id: str) -> None:
        """Delete a turn with all that hangs on it; does nothing if there is none."""

        def write(connection: Connection) -> None:
            connection.execute("DELETE FROM waiting_approvals WHERE turn = ?", (turn_id,))
            connection.execute("DELETE FROM turns WHERE id = ?", (turn_id,))

        await self.queue(write)

    def turns(self, *, user: str | None = None, limit: int = 50, skip: int = 0) -> list[Stored]:
        """Return turns, newest first; of one user, or all."""
        query = "SELECT * FROM turns WHERE ? IS NULL OR user = ? ORDER BY row DESC LIMIT ? OFFSET ?"
        found = self.rows(query, user, user, limit, skip)
        return [self._stored(row) for row in found]

    def _stored(self, row: StoredRow) -> Stored:
        events = [
            event_of(e["kind"], e["event"])
            for e in self.rows("SELECT kind, event FROM events WHERE turn = ? ORDER BY number", row["row"])
        ]
        return Stored(
            turn_of(row["turn"]),
            tuple(e for e in events if e is not None),
            datetime.fromisoformat(row["started"]),
            datetime.fromisoformat(row["finished"]),
            row["finish_reason"],
        )

    # ---- feedback ----

    def add_feedback(
        self,
        turn_id: str,
        value: float,
        comment: str = "",
        user: str = "anonymous",
        corrected: str | None = None,
        reasons: Sequence[str] = (),
    ) -> None:
        """Add a rating of an answer; raises DemeanorError for an unknown turn or a value outside of [-1,
        1]."""
        if not -1 <= value <= 1:
            raise DemeanorError(f"feedback: got {value}, wanted a number from -1 (bad) to 1 (good)")

        def write(connection: Connection) -> int:
            return connection.execute(
                "INSERT INTO feedback (turn, created, user, value, comment, corrected, reasons)"
                " SELECT row, ?, ?, ?, ?, ?, ? FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1",
                (
                    _stamp(self._now()),
                    user,
                    value,
                    comment,
                    corrected,
                    ",".join(reasons),
                    turn_id,
                ),
            ).rowcount

        if not self._writer.submit(write).result():
            raise DemeanorError(f"feedback: no recorded turn has the id '{turn_id}'")

    def feedback(self, turn_id: str | None = None) -> list[Feedback]:
        """Return feedback on one turn, or all of it; oldest first."""
        found = self.rows(
            "SELECT turns.id, value, comment, feedback.user, created, corrected, reasons FROM feedback"
            " JOIN turns ON turns.row = feedback.turn"
            " WHERE ? IS NULL OR turns.id = ? ORDER BY feedback.row",
            turn_id,
            turn_id,
        )
        return [
            Feedback(
                r["id"],
                r["value"],
                r["comment"],
                r["user"],
                datetime.fromisoformat(r["created"]),
                r["corrected"],
                tuple(filter(None, r["reasons"].split(","))),
            )
            for r in found
        ]

    # ---- for other files of this room ----

    def now(self) -> datetime:
        """Return the current time of the database's clock."""
        return self._now()

    def write(self, job: Job[T]) -> Future[T]:
        """Queue a write; the future is done once it is durable."""
        return self._writer.submit(job)

    def queue(self, job: Job[T]) -> Awaitable[T]:
        """Queue a write at once; awaiting the result waits until it is durable."""
        return asyncio.wrap_future(self._writer.submit(job))

    def rows(self, query: str, *values: Any) -> list[StoredRow]:
        """Return the rows of a SELECT with `?` for each value."""
        return self._readers.rows(query, values)

    async def read(self, function: Callable[[], T]) -> T:
        """Return what a function reads here, without holding up the event loop for another machine. Raises StoreError
        if that takes longer than READ_S."""
        if not self.backend.remote:
            return function()
        reading = asyncio.get_running_loop().run_in_executor(self._threads, function)
        try:
            return await asyncio.wait_for(reading, READ_S)
        except TimeoutError:
            raise StoreError(f"{self.backend.name}: {self.backend.busy} for {READ_S:g} s") from None

    async def check(self, wait_s: float = CHECK_S) -> None:
        """Raise StoreError if nothing can be written within `wait_s`: another program holds the lock, or no server answers."""
        try:
            await asyncio.wait_for(self.queue(lambda connection: None), wait_s)
        except TimeoutError:
            raise StoreError(f"{self.backend.name}: {self.backend.busy} for {wait_s:g} s") from None


class Readers:
    """Connections for reading, opened when they are needed, at most MOST_READERS."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._idle: list[Connection] = []
        self._lock, self._room = threading.Lock(), threading.BoundedSemaphore(MOST_READERS)
        self._closed = False

    def rows(self, query: str, values: Sequence[Any]) -> list[StoredRow]:
        """Return the rows of a SELECT; once more on a new connection if the server closed the old one."""
        for again in (True, False):
            try:
                with self._one() as connection:
                    return connection.execute(query, values).fetchall()
            except self._backend.errors as error:
                if not again or not self._backend.lost(error):
                    reason = self._backend.reason(error)
                    raise StoreError(f"{self._backend.name}: cannot be read: {reason}") from None
            except StoreError as error:
                raise StoreError(f"{self._backend.name}: cannot be read: {error}") from None
        raise AssertionError("unreachable")

    @contextlib.contextmanager
    def _one(self) -> Iterator[Connection]:
        with self._room:
            with self._lock:
                if self._closed:
                    raise StoreError("the database is closed")
                connection = self._idle.pop() if self._idle else None
            connection = connection or self._backend.reading()
            try:
                yield connection
            finally:
                with self._lock:
                    if connection.usable and not self._closed:
                        self._idle.append(connection)
                    else:
                        connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
