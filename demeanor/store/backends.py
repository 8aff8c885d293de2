"""What the database runs on: a SQLite file, or PostgreSQL by its URL, behind one kind of connection.

In: statements in the SQL that both have, with `?` for values. Out: rows that are read by name or by place.
Text is made storable on the way in; a PostgreSQL password never leaves in an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol, overload

from demeanor.core.addresses import DATABASE, POSTGRES, filled, passwords, shown, without
from demeanor.core.errors import DemeanorError, StoreError, UsageError

BUSY_S = 10.0  # how long a write waits for another program's lock
READ_S = 0.2  # a read of SQLite does so only in rare moments, and on the thread of its caller
STALLED_S = (
    10.0  # PostgreSQL ends a writer that stops in the middle of a transaction, so that others can go on
)
STATEMENT_S = 10.0  # the longest read of PostgreSQL
CONNECT_S = 2  # the least that libpq knows
RETRY_S = 0.5  # after a failed connection the next attempts fail at once for this long
SQLITE = "sqlite:///"

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """Return text that every database can store: lone surrogates and NUL become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def _value(value: Any) -> Any:
    """Return a value that both databases store alike: booleans are 0 and 1."""
    if isinstance(value, str):
        return storable(value)
    return int(value) if isinstance(value, bool) else value


class StoredRow(Protocol):
    """A row of a result: values by name or by place."""

    @overload
    def __getitem__(self, key: int | str, /) -> Any: ...
    @overload
    def __getitem__(self, key: slice, /) -> tuple[Any, ...]: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __len__(self) -> int: ...
    def keys(self) -> list[str]: ...


class Cursor(Protocol):
    """The outcome of a statement."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A connection that statements are run on; `usable` is False once it is lost."""

    @property
    def usable(self) -> bool: ...
    def execute(self, query: str, values: Sequence[Any] = (), /) -> Cursor: ...
    def executemany(self, query: str, rows: Iterable[Sequence[Any]], /) -> None: ...
    def close(self) -> None: ...


class Backend(Protocol):
    """A kind of database: how to connect, begin a write, and keep the number of its schema."""

    @property
    def name(self) -> str:
        """The database in errors, without a password."""
        ...

    @property
    def place(self) -> str:
        """What a database of this kind is: a file, or a database or schema."""
        ...

    @property
    def busy(self) -> str:
        """What a write that waits too long waits for."""
        ...

    @property
    def remote(self) -> bool:
        """True if a read may wait for another machine."""
        ...

    @property
    def begin(self) -> tuple[str, ...]:
        """Statements that begin a transaction which is the only one that writes."""
        ...

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The exceptions of its driver."""
        ...

    def writing(self) -> Connection:
        """Connect for writing."""
        ...

    def reading(self) -> Connection:
        """Connect for reading alone."""
        ...

    def purge(self) -> None:
        """Remove from the disk what was deleted, as far as that is possible now."""
        ...

    def reason(self, error: Exception) -> str:
        """Return what an error of the driver says, without contents and passwords."""
        ...

    def lost(self, error: Exception) -> bool:
        """Return True if an error is of a connection that ended, so that a read may be tried on another."""
        ...

    def schema_version(self, connection: Connection) -> int: ...
    def set_schema_version(self, connection: Connection, version: int) -> None: ...
    def tables(self, connection: Connection) -> list[str]: ...


def backend_of(url: str, root: Path) -> Backend:
    """Return the backend of `sqlite:///PATH` (relative to `root`) or `postgresql://...`; `${NAME}` in it is an
    environment variable.

    Raises UsageError for any other address.
    """
    try:
        address = filled(url)
    except UsageError as error:
        raise UsageError(f"database: got '{shown(url)}': {error}") from None
    if address.startswith(SQLITE) and address[len(SQLITE) :]:
        return Sqlite(root / address[len(SQLITE) :])
    if address.startswith(POSTGRES):
        return Postgres(address)
    raise UsageError(f"database: got '{shown(url)}', wanted {DATABASE}")


# ---- SQLite ----


class SqliteConnection:
    """A connection to a SQLite file."""

    usable = True

    def __init__(self, path: Path, busy_s: float) -> None:
        self._raw = sqlite3.connect(path, timeout=busy_s, isolation_level=None, check_same_thread=False)
        self._raw.row_factory = sqlite3.Row

    def execute(self, query: str, values: Sequence[Any] = (), /) -> Cursor:
        return self._raw.execute(query, [_value(v) for v in values])

    def executemany(self, query: str, rows: Iterable[Sequence[Any]], /) -> None:
        self._raw.executemany(query, [[_value(v) for v in row] for row in rows])

    def close(self) -> None:
        self._raw.close()


class Sqlite:
    """A SQLite file in WAL mode, readable by its owner only."""

    place, busy, remote = "file", "locked by another program", False
    begin = ("BEGIN IMMEDIATE",)
    errors: tuple[type[Exception], ...] = (sqlite3.Error, OSError)

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        return self.path.name

    def writing(self) -> Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        connection = SqliteConnection(self.path, BUSY_S)
        try:
            # FULL would also survive a power cut, but a record then takes 4.0 ms at the median instead of 0.2 ms.
            for pragma in (
                "journal_mode = WAL",
                "synchronous = NORMAL",
                "foreign_keys = ON",
                "secure_delete = ON",  # what is deleted is overwritten
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def reading(self) -> Connection:
        connection = SqliteConnection(self.path, READ_S)
        connection.execute("PRAGMA query_only = ON")
        return connection

    def purge(self) -> None:
        connection = SqliteConnection(self.path, BUSY_S)
        with contextlib.suppress(
            sqlite3.Error
        ):  # while another program reads, the log stays until it is reused
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.close()

    def reason(self, error: Exception) -> str:
        return str(error)

    def lost(self, error: Exception) -> bool:
        return False

    def schema_version(self, connection: Connection) -> int:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])

    def set_schema_version(self, connection: Connection, version: int) -> None:
        connection.execute(f"PRAGMA user_version = {version:d}")

    def tables(self, connection: Connection) -> list[str]:
        query = "SELECT name FROM sqlite_master WHERE type = 'table'"
        return [row[0] for row in connection.execute(query)]


# ---- PostgreSQL ----

_TOKENS = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|[?%]|\buser\b", re.IGNORECASE)
_TYPES = (
    (re.compile(r"\bINTEGER PRIMARY KEY\b"), "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"),
    (re.compile(r"\bINTEGER\b"), "BIGINT"),
    (re.compile(r"\bREAL\b"), "DOUBLE PRECISION"),
    (re.compile(r"\bBLOB\b"), "BYTEA"),
    (re.compile(r"\bTEXT\b"), 'TEXT COLLATE "C"'),  # texts are ordered as SQLite orders them: by code points
    (re.compile(r"\s*\bWITHOUT ROWID\b"), ""),
)


@lru_cache(maxsize=1024)
def postgres_sql(query: str) -> str:
    """Translate a statement: `?` is a value, `user` a column (PostgreSQL's own `user` is the role that asks), and
    the types of tables are PostgreSQL's."""

    def token(found: re.Match[str]) -> str:
        word = found[0]
        if word == "?":
            return "%s"
        return f'"{word.lower()}"' if word.lower() == "user" else word.replace("%", "%%")

    if query.lstrip().startswith(("CREATE TABLE", "ALTER TABLE")):
        for pattern, written in _TYPES:
            query = pattern.sub(written, query)
    return _TOKENS.sub(token, query)


_INSERTED = re.compile(r"^INSERT\b.*\bVALUES\s*(\((?:%s|[\s,])+\))\s*$", re.DOTALL)
ROWS_A_STATEMENT = 500


class PostgresRow(tuple[Any, ...]):
    """A row whose values are also found by name."""

    names: tuple[str, ...] = ()

    def __getitem__(self, key: Any, /) -> Any:
        return tuple.__getitem__(self, self.names.index(key) if isinstance(key, str) else key)

    def keys(self) -> list[str]:
        return list(self.names)


@lru_cache(maxsize=256)
def _row_of(names: tuple[str, ...]) -> type[PostgresRow]:
    return type("PostgresRow", (PostgresRow,), {"names": names})


def _rows(cursor: Any) -> type[PostgresRow]:
    return _row_of(tuple(column.name for column in cursor.description or ()))


@cache
def _number_loader() -> Any:
    """Return what reads PostgreSQL's numeric, the type of a sum, as the int or float that SQLite gives."""
    from psycopg.adapt import Loader

    class NumberLoader(Loader):
        def load(self, data: Any) -> int | float:
            text = bytes(data).decode()
            return int(text) if text.lstrip("-").isdecimal() else float(text)

    return NumberLoader


class PostgresConnection:
    """A connection to PostgreSQL."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    @property
    def usable(self) -> bool:
        return not (self._raw.closed or self._raw.broken)

    def execute(self, query: str, values: Sequence[Any] = (), /) -> Cursor:
        found: Cursor = self._raw.execute(postgres_sql(query), [_value(v) for v in values])
        return found

    def executemany(self, query: str, rows: Iterable[Sequence[Any]], /) -> None:
        values = [[_value(v) for v in row] for row in rows]
        translated = postgres_sql(query)
        if (found := _INSERTED.search(translated)) is None:
            with self._raw.cursor() as cursor:
                cursor.executemany(translated, values)
            return
        for at in range(0, len(values), ROWS_A_STATEMENT):  # each statement is a way to the server and back
            some = values[at : at + ROWS_A_STATEMENT]
            self._raw.execute(
                translated + f", {found[1]}" * (len(some) - 1), [v for row in some for v in row]
            )

    def close(self) -> None:
        self._raw.close()


class Postgres:
    """A schema of a PostgreSQL database. One transaction writes at a time, as in SQLite: all take one advisory lock."""

    place = "database, or a schema of its own (?options=-csearch_path=NAME)"
    busy, remote = "does not answer, or is locked by another program,", True
    begin: tuple[str, ...] = ("BEGIN", "SELECT pg_advisory_xact_lock(3405691582)")

    def __init__(self, address: str) -> None:
        """Take an address with its secrets filled in; raises UsageError if it is malformed or psycopg is missing."""
        try:
            import psycopg
            from psycopg import conninfo
        except ImportError:
            raise UsageError(
                "database: postgresql:// needs psycopg; install it: pip install 'demeanor[postgres]'"
            ) from None
        self._psycopg = psycopg
        self.errors: tuple[type[Exception], ...] = (psycopg.Error, OSError)
        self.name, self._secrets = shown(address), passwords(address)
        self._failed: tuple[float, str] | None = None
        try:
            self._given = conninfo.conninfo_to_dict(address)
        except psycopg.Error:  # its text quotes parts of the address
            raise UsageError(
                f"database: got '{self.name}', wanted postgresql://USER@HOST/DATABASE with special characters "
                "of a password percent-encoded"
            ) from None

    def _connect(self, **settings: object) -> PostgresConnection:
        """Connect with session settings. Raises StoreError, for RETRY_S after a failure without trying again."""
        if self._failed is not None and time.monotonic() < self._failed[0]:
            raise StoreError(self._failed[1])
        options = [str(self._given.get("options") or "")]
        options += [f"-c {name}={value}" for name, value in settings.items()]
        values: dict[str, Any] = {"application_name": "demeanor", "connect_timeout": CONNECT_S} | self._given
        values |= {"options": " ".join(options).strip(), "tcp_user_timeout": int(1000 * BUSY_S)}
        try:
            raw = self._psycopg.connect(
                **values,
                autocommit=True,
                cursor_factory=self._psycopg.ClientCursor,
                row_factory=_rows,
                prepare_threshold=None,
            )
        except self.errors as error:
            self._failed = (time.monotonic() + RETRY_S, self.reason(error))
            raise StoreError(self._failed[1]) from None
        self._failed = None
        raw.adapters.register_loader("numeric", _number_loader())
        return PostgresConnection(raw)

    def writing(self) -> Connection:
        return self._connect(
            lock_timeout=int(1000 * BUSY_S), idle_in_transaction_session_timeout=int(1000 * STALLED_S)
        )

    def reading(self) -> Connection:
        return self._connect(default_transaction_read_only="on", statement_timeout=int(1000 * STATEMENT_S))

    def purge(self) -> None:
        connection = self._connect(statement_timeout=int(1000 * STATEMENT_S))
        with contextlib.suppress(*self.errors):  # else autovacuum does it later
            for table in ("events", "turns", "feedback", "conversations"):
                connection.execute(f"VACUUM {table}")
        connection.close()

    def reason(self, error: Exception) -> str:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return without(lines[0], self._secrets)  # further lines quote the rows

    def lost(self, error: Exception) -> bool:
        is_lost = isinstance(error, self._psycopg.OperationalError)
        return is_lost and not isinstance(error, self._psycopg.errors.QueryCanceled)

    def schema_version(self, connection: Connection) -> int:
        if connection.execute("SELECT current_schema()").fetchone()[0] is None:
            raise DemeanorError("the schema of the database's search_path does not exist; create it first")
        if "demeanor_schema" not in self._all_tables(connection):
            return 0
        return int(connection.execute("SELECT max(version) FROM demeanor_schema").fetchone()[0])

    def set_schema_version(self, connection: Connection, version: int) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS demeanor_schema (version INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO demeanor_schema (version) VALUES (?)", (version,))

    def tables(self, connection: Connection) -> list[str]:
        return self._all_tables(connection)

    def _all_tables(self, connection: Connection) -> list[str]:
        """Return the tables of the current schema that belong to no extension."""
        query = (
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE n.nspname = current_schema() AND c.relkind IN ('r', 'p') AND NOT EXISTS"
            " (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')"
        )
        return [row[0] for row in connection.execute(query)]
