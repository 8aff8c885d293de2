"""API keys in the database: made, listed, revoked, looked up; and what each has spent today.

In: a Database. Out: `Key`s, which hold everything but the key itself: only its SHA-256 is stored (it is 256 random bits, so nothing
slower is needed) and its first characters, to tell keys apart. Spending is taken in one statement, so that no two callers, threads
or processes can take the same tokens.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from demeanor.core.errors import UsageError, unknown
from demeanor.store import codec
from demeanor.store.database import Database

SCOPES = ("chat", "embeddings", "feedback", "metrics", "models", "moderations")
"""What a key may be limited to; `chat` is every address that answers a conversation or continues a text."""
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key: whose it is, its first characters, what it may do (`scopes` None: everything) and how much of it."""

    digest: str
    name: str
    prefix: str
    created: datetime
    revoked: datetime | None = None
    scopes: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None


def digest(key: str) -> str:
    """The lowercase hexadecimal SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def create(
    database: Database,
    name: str,
    *,
    scopes: Sequence[str] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_day: int | None = None,
) -> str:
    """Make a key and return it: this once it is shown, only its digest is kept.

    Raises DemeanorError for an empty name, an unknown scope, or a limit below 1.
    """
    if not name.strip() or len(name) > 128 or not name.isprintable():
        raise UsageError(f"keys: name: got {name!r}, wanted 1 to 128 printable characters")
    for scope in scopes or ():
        if scope not in SCOPES:
            raise UsageError(f"keys: scopes: {unknown(scope, SCOPES, noun='scope')}")
    if scopes is not None and not scopes:
        raise UsageError(
            f"keys: scopes: got none, wanted at least one of {', '.join(SCOPES)}; leave it out to allow everything"
        )
    for what, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_day", tokens_per_day)):
        if limit is not None and limit < 1:
            raise UsageError(f"keys: {what}: got {limit}, wanted 1 or more; leave it out for no limit")
    key = f"dm-{secrets.token_urlsafe(32)}"
    row = (
        digest(key),
        codec.storable(name),
        database.now().astimezone(UTC).isoformat(),
        key[:SHOWN],
        None if scopes is None else ",".join(sorted(set(scopes))),
        requests_per_minute,
        tokens_per_day,
    )
    database.write(
        lambda c: (
            c.execute(
                "INSERT INTO keys (digest, name, created, prefix, scopes, requests_per_minute, tokens_per_day) VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            ).rowcount
        )
    ).result()
    return key


def stored(database: Database) -> list[Key]:
    """All keys, revoked ones too, oldest first."""
    return [_key(row) for row in database.rows("SELECT * FROM keys ORDER BY created, digest")]


def revoke(database: Database, which: str) -> list[Key]:
    """Revoke every key of this name, or the one with these first characters; returns those that were in force.

    It holds from the next request on, in running servers too.
    """
    value, stamp = codec.storable(which), database.now().astimezone(UTC).isoformat()

    def write(connection: sqlite3.Connection) -> list[Key]:
        found = [
            _key(row)
            for row in connection.execute(
                "SELECT * FROM keys WHERE (name = ? OR prefix = ?) AND revoked IS NULL ORDER BY created, digest",
                (value, value),
            )
        ]
        connection.executemany(
            "UPDATE keys SET revoked = ? WHERE digest = ?", [(stamp, key.digest) for key in found]
        )
        return found

    return database.write(write).result()


def find(database: Database, key: str) -> Key | None:
    """The stored key that this text is; None if it is unknown or revoked."""
    rows = database.rows("SELECT * FROM keys WHERE digest = ? AND revoked IS NULL", digest(key))
    return _key(rows[0]) if rows else None


# ---- what a key has spent on a day (UTC) ----


def day_of(time: datetime) -> str:
    """The day (UTC) that a moment's tokens count on."""
    return time.astimezone(UTC).date().isoformat()


def spent(database: Database, key_digest: str, day: str) -> int:
    """Tokens taken on that day, open reservations included."""
    rows = database.rows("SELECT tokens FROM spending WHERE digest = ? AND day = ?", key_digest, day)
    return int(rows[0]["tokens"]) if rows else 0


def take(database: Database, key_digest: str, day: str, tokens: int, limit: int) -> Awaitable[bool]:
    """Take tokens of a day's limit before they are used; False, and nothing taken, if there are not so many left.

    What a crash leaves taken stays taken until the day ends: a key can lose tokens that way, never gain any.
    """

    def write(connection: sqlite3.Connection) -> bool:
        connection.execute(
            "INSERT OR IGNORE INTO spending (digest, day, tokens) VALUES (?, ?, 0)", (key_digest, day)
        )
        return (
            connection.execute(
                "UPDATE spending SET tokens = tokens + ? WHERE digest = ? AND day = ? AND tokens + ? <= ?",
                (tokens, key_digest, day, tokens, limit),
            ).rowcount
            == 1
        )

    return database.queue(write)


def give_back(database: Database, key_digest: str, day: str, tokens: int) -> Awaitable[None]:
    """Give back what was taken and not used; negative: what was used beyond it, whatever the limit."""

    def write(connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE spending SET tokens = MAX(0, tokens - ?) WHERE digest = ? AND day = ?",
            (tokens, key_digest, day),
        )

    return database.queue(write)


def _key(row: sqlite3.Row) -> Key:
    return Key(
        row["digest"],
        row["name"],
        row["prefix"],
        datetime.fromisoformat(row["created"]),
        revoked=datetime.fromisoformat(row["revoked"]) if row["revoked"] else None,
        scopes=tuple(row["scopes"].split(",")) if row["scopes"] is not None else None,
        requests_per_minute=row["requests_per_minute"],
        tokens_per_day=row["tokens_per_day"],
    )
