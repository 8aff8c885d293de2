"""The database of recorded turns, feedback and keys: SQLite in one file, written by one thread, read by many.

In: turns with their events, feedback. Out: stored turns. Writes are grouped into transactions and durable
when awaited. Migrations run in order, each once; an applied migration is never edited.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import queue
import re
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import TypeAdapter

from demeanor.core import types
from demeanor.core.errors import DataError, DemeanorError, StoreError, UsageError
from demeanor.core.types import Completion, Done, Event, RatedTurn, Text, Turn, fold

EVENTS: dict[str, TypeAdapter[Event]] = {cls.__name__: TypeAdapter(cls) for cls in get_args(types.Event)}
_TURN = TypeAdapter(Turn)
_SURROGATE = re.compile("[\ud800-\udfff]")


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
    return [(type(e).__name__, storable(str(getattr(e, "by", ""))), _json(e)) for e in joined]


def event_of(kind: str, text: str) -> Event | None:
    """Parse the event stored under `kind`; None for an unknown kind."""
    adapter = EVENTS.get(kind)
    return None if adapter is None else adapter.validate_python(json.loads(text))


def storable(text: str) -> str:
    """Return text that SQLite can store: lone surrogates become U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def _json(value: Any) -> str:
    is_object = dataclasses.is_dataclass(value) and not isinstance(value, type)
    plain = dataclasses.asdict(value) if is_object else repr(value)
    return json.dumps(plain, default=str)


MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE turns (
            row INTEGER PRIMARY KEY, id TEXT NOT NULL, started TEXT NOT NULL, finished TEXT NOT NULL,
            user TEXT NOT NULL, variant TEXT NOT NULL, stack_key TEXT NOT NULL, turn TEXT NOT NULL,
            answer TEXT NOT NULL, finish_reason TEXT, refused_by TEXT, rule TEXT,
            prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)""",
        "CREATE INDEX turns_id ON turns (id)",
        "CREATE INDEX turns_user ON turns (user, row)",
        """CREATE TABLE events (
            turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE, number INTEGER NOT NULL,
            kind TEXT NOT NULL, by TEXT NOT NULL, event TEXT NOT NULL,
            PRIMARY KEY (turn, number)) WITHOUT ROWID""",
        """CREATE TABLE feedback (
            row INTEGER PRIMARY KEY, turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE,
            created TEXT NOT NULL, user TEXT NOT NULL, value REAL NOT NULL CHECK (value BETWEEN -1 AND 1),
            comment TEXT NOT NULL)""",
        "CREATE INDEX feedback_turn ON feedback (turn)",
        """CREATE TABLE keys (
            digest TEXT PRIMARY KEY, name TEXT NOT NULL, created TEXT NOT NULL,
            revoked TEXT) WITHOUT ROWID""",
    ),
    (
        "ALTER TABLE keys ADD COLUMN prefix TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE keys ADD COLUMN scopes TEXT",
        "ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER",
        "ALTER TABLE keys ADD COLUMN tokens_per_day INTEGER",
        """CREATE TABLE spending (
            digest TEXT NOT NULL REFERENCES keys (digest) ON DELETE CASCADE, day TEXT NOT NULL,
            tokens INTEGER NOT NULL CHECK (tokens >= 0), PRIMARY KEY (digest, day)) WITHOUT ROWID""",
    ),
    ("ALTER TABLE feedback ADD COLUMN corrected TEXT",),
    ("ALTER TABLE keys ADD COLUMN models TEXT NOT NULL DEFAULT ''",),
    (  # labelling: store/labels.py
        "CREATE TABLE label_queues (name TEXT PRIMARY KEY, settings TEXT NOT NULL, created TEXT NOT NULL)",
        """CREATE TABLE label_items (
            id TEXT PRIMARY KEY, queue TEXT NOT NULL REFERENCES label_queues (name), number INTEGER NOT NULL,
            prompt TEXT NOT NULL, answers TEXT NOT NULL, gold TEXT, arm TEXT NOT NULL, priority REAL NOT NULL,
            source TEXT NOT NULL)""",
        "CREATE INDEX label_items_queue ON label_items (queue, number)",
        """CREATE TABLE label_slots (
            item TEXT NOT NULL REFERENCES label_items (id), slot INTEGER NOT NULL, labeller TEXT, expires REAL,
            shown TEXT, done TEXT, PRIMARY KEY (item, slot))""",
        "CREATE UNIQUE INDEX label_slots_labeller ON label_slots (item, labeller)",
        """CREATE TABLE labels (
            item TEXT NOT NULL REFERENCES label_items (id), labeller TEXT NOT NULL, role TEXT NOT NULL,
            choice TEXT NOT NULL, ranks TEXT NOT NULL, shown TEXT NOT NULL, reason TEXT NOT NULL,
            ms INTEGER NOT NULL, created TEXT NOT NULL, revisions INTEGER NOT NULL, PRIMARY KEY (item, labeller))""",
        """CREATE TABLE label_invitations (
            digest TEXT PRIMARY KEY, queue TEXT NOT NULL REFERENCES label_queues (name), name TEXT NOT NULL,
            role TEXT NOT NULL, created TEXT NOT NULL, expires TEXT, revoked TEXT)""",
    ),
    (  # live traffic: store/experiments.py, store/turn_jobs.py
        """CREATE TABLE experiments (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, declared TEXT NOT NULL, started TEXT NOT NULL,
            stopped TEXT, reason TEXT NOT NULL)""",
        """CREATE TABLE experiment_turns (
            experiment TEXT NOT NULL REFERENCES experiments (id) ON DELETE CASCADE,
            turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE, unit TEXT NOT NULL,
            arm INTEGER NOT NULL, created TEXT NOT NULL, value REAL, PRIMARY KEY (experiment, turn))""",
        "CREATE INDEX experiment_turns_turn ON experiment_turns (turn)",
        """CREATE TABLE turn_jobs (
            id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL,
            turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE, state TEXT NOT NULL,
            owner TEXT NOT NULL, lease TEXT NOT NULL, attempts INTEGER NOT NULL, created TEXT NOT NULL,
            ended TEXT, reason TEXT, value REAL, live_value REAL, answer TEXT, explanation TEXT, model TEXT, stack_key TEXT,
            ms REAL, prompt_tokens INTEGER, completion_tokens INTEGER, cost_usd REAL)""",
        "CREATE INDEX turn_jobs_turn ON turn_jobs (turn)",
        "CREATE INDEX turn_jobs_name ON turn_jobs (kind, name, created)",
        "CREATE INDEX turn_jobs_pending ON turn_jobs (state, lease)",
        """CREATE TABLE job_counts (
            kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, day TEXT NOT NULL,
            outcome TEXT NOT NULL, number INTEGER NOT NULL,
            PRIMARY KEY (kind, name, version, day, outcome))""",
        """CREATE TABLE routed_complaints (
            turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE, stack_key TEXT NOT NULL,
            label TEXT NOT NULL, layer TEXT NOT NULL, repair TEXT NOT NULL, evidence TEXT NOT NULL,
            created TEXT NOT NULL, PRIMARY KEY (turn, stack_key))""",
    ),
    (  # amounts: billionths of a USD, which need 64 bits; turns without a known cost have none
        "ALTER TABLE keys ADD COLUMN usd_per_day DOUBLE PRECISION",
        "ALTER TABLE spending ADD COLUMN nano_usd BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE spending ADD COLUMN unpriced BIGINT NOT NULL DEFAULT 0",
        "ALTER TABLE turns ADD COLUMN cost_usd DOUBLE PRECISION",
    ),
)


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing migrations; raises DemeanorError for a newer or a foreign database."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        tables = [name for (name,) in connection.execute(query)]
        if version > len(MIGRATIONS):
            raise DemeanorError(
                f"the database has schema {version}; this version of demeanor knows {len(MIGRATIONS)}. "
                "Upgrade demeanor."
            )
        if version == 0 and tables:
            raise DemeanorError(
                f"the database has tables that are not ours: {', '.join(sorted(tables)[:5])}. "
                "Name another file."
            )
        for statement in (s for migration in MIGRATIONS[version:] for s in migration):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS):d}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


T = TypeVar("T")
Job: TypeAlias = Callable[[sqlite3.Connection], T]
MAX_BATCH = 256


class Writer:
    """Owns the writing connection, in a thread of its own, until `close`."""

    def __init__(self, open_connection: Callable[[], sqlite3.Connection]) -> None:
        """Open the connection in the writing thread; raises what opening it raises."""
        self._jobs: queue.SimpleQueue[tuple[Job[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._closed = False
        opened: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(open_connection, opened), name="store-writer", daemon=True
        )
        self._thread.start()
        opened.result()

    def submit(self, job: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue a job; raises DemeanorError after `close`."""
        done: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise DemeanorError("the database is closed")
            self._jobs.put((job, done))
        return done

    def close(self) -> None:
        """Finish the queued jobs, then stop; a second call does nothing."""
        with self._closing:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self, open_connection: Callable[[], sqlite3.Connection], opened: Future[None]) -> None:
        try:
            connection = open_connection()
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        with contextlib.closing(connection):
            going = True
            while going:
                batch, going = self._batch()
                _commit(connection, batch)

    def _batch(self) -> tuple[list[tuple[Job[Any], Future[Any]]], bool]:
        """Return all queued jobs, at least one, and False if `close` was called."""
        batch: list[tuple[Job[Any], Future[Any]]] = []
        while len(batch) < MAX_BATCH:
            try:
                entry = self._jobs.get(block=not batch)
            except queue.Empty:
                break
            if entry is None:
                return batch, False
            batch.append(entry)
        return batch, True


def _commit(connection: sqlite3.Connection, batch: list[tuple[Job[Any], Future[Any]]]) -> None:
    """Run jobs in one transaction, each in its own savepoint; set their futures after the commit."""
    outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for job, done in batch:
            connection.execute("SAVEPOINT job")
            try:
                outcomes.append((done, job(connection), None))
            except Exception as error:
                connection.execute("ROLLBACK TO job")
                outcomes.append((done, None, error))
            connection.execute("RELEASE job")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        outcomes = [(done, None, error) for _, done in batch]
    for done, result, failure in outcomes:
        if not done.set_running_or_notify_cancel():
            continue
        if failure is None:
            done.set_result(result)
        elif isinstance(failure, sqlite3.Error):
            done.set_exception(StoreError(f"the database cannot write: {failure}"))
        else:
            done.set_exception(failure)


SCHEME = "sqlite:///"
BUSY_S = 10.0  # how long a write waits for another program's lock
READ_S = 0.2  # a read does so only in rare moments, and on the thread of its caller
CHECK_S = 1.0


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


def open_url(url: str, *, root: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Database:
    """Open or create `sqlite:///PATH` (relative to `root`); raises DemeanorError if that fails."""
    if not url.startswith(SCHEME) or not url[len(SCHEME) :]:
        raise UsageError(f"database: got '{url}', wanted {SCHEME}PATH")
    return Database(root / url[len(SCHEME) :], now)


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


def rated_turns(path: Path) -> list[RatedTurn]:
    """Return the finished turns with feedback of a database file; raises DataError if it contains no
    turns."""
    if not path.is_file():
        raise DataError(f"{path}: no such database; the `record` layer writes one")
    if not holds_turns(path):  # opening it would create empty tables
        raise DataError(f"{path}: holds no turns; wanted a database that the `record` layer wrote")
    store = open_url(f"sqlite:///{path.resolve()}", root=Path.cwd())
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

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path, self._now = path, now
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
            self._writer = Writer(lambda: _writing(path))
            self._reader = _connect(path, READ_S)
            self._reader.execute("PRAGMA query_only = ON")
        except (OSError, sqlite3.Error, DemeanorError) as error:
            raise DemeanorError(f"{path}: {error}") from None
        self._reading = threading.Lock()

    def close(self) -> None:
        """Write the queued turns, then close."""
        self._writer.close()
        with self._reading:
            self._reader.close()

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
        values = [storable(v) if isinstance(v, str) else v for v in row]
        rows = event_rows(events)

        def write(connection: sqlite3.Connection) -> None:
            cursor = connection.execute(
                "INSERT INTO turns (id, started, finished, user, variant, stack_key, turn, answer,"
                " finish_reason, refused_by, rule, prompt_tokens, completion_tokens, cost_usd)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
            connection.executemany(
                "INSERT INTO events (turn, number, kind, by, event) VALUES (?, ?, ?, ?, ?)",
                [(cursor.lastrowid, i, *r) for i, r in enumerate(rows)],
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
        """Delete a turn with its events and feedback; does nothing if there is none."""
        stored_id = storable(turn_id)
        await self.queue(lambda c: c.execute("DELETE FROM turns WHERE id = ?", (stored_id,)).rowcount)

    def turns(self, *, user: str | None = None, limit: int = 50, skip: int = 0) -> list[Stored]:
        """Return turns, newest first; of one user, or all."""
        query = "SELECT * FROM turns WHERE ? IS NULL OR user = ? ORDER BY row DESC LIMIT ? OFFSET ?"
        found = self.rows(query, user, user, limit, skip)
        return [self._stored(row) for row in found]

    def _stored(self, row: sqlite3.Row) -> Stored:
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
    ) -> None:
        """Add a rating of an answer; raises DemeanorError for an unknown turn or a value outside of [-1,
        1]."""
        if not -1 <= value <= 1:
            raise DemeanorError(f"feedback: got {value}, wanted a number from -1 (bad) to 1 (good)")

        def write(connection: sqlite3.Connection) -> int:
            return connection.execute(
                "INSERT INTO feedback (turn, created, user, value, comment, corrected)"
                " SELECT row, ?, ?, ?, ?, ? FROM turns WHERE id = ? ORDER BY row DESC LIMIT 1",
                (
                    _stamp(self._now()),
                    storable(user),
                    value,
                    storable(comment),
                    None if corrected is None else storable(corrected),
                    storable(turn_id),
                ),
            ).rowcount

        if not self._writer.submit(write).result():
            raise DemeanorError(f"feedback: no recorded turn has the id '{turn_id}'")

    def feedback(self, turn_id: str | None = None) -> list[Feedback]:
        """Return feedback on one turn, or all of it; oldest first."""
        found = self.rows(
            "SELECT turns.id, value, comment, feedback.user, created, corrected FROM feedback"
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

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a SELECT with `?` for each value."""
        given = [storable(v) if isinstance(v, str) else v for v in values]
        try:
            with self._reading:
                return self._reader.execute(query, given).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path.name}: cannot be read: {error}") from None

    async def check(self, wait_s: float = CHECK_S) -> None:
        """Raise StoreError if nothing can be written within `wait_s`: another program holds the lock."""
        try:
            await asyncio.wait_for(self.queue(lambda connection: None), wait_s)
        except TimeoutError:
            raise StoreError(f"{self.path.name}: locked by another program for {wait_s:g} s") from None


def _connect(path: Path, busy_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


def _writing(path: Path) -> sqlite3.Connection:
    connection = _connect(path, BUSY_S)
    try:
        # FULL would also survive a power cut, but a record then takes 4.0 ms at the median instead of 0.2 ms.
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat()
