"""API keys in the database: creation, listing, revocation, lookup, and the tokens spent each day.

In: a Database. Out: `Key`s without the key itself: only its SHA-256 (it has 256 random bits, so no slow hash
is needed) and its first characters are stored. Tokens are taken in one statement, so no two callers, threads
or processes can take the same ones.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from demeanor.core.errors import UsageError, unknown
from demeanor.store.backends import Connection, StoredRow
from demeanor.store.database import Database

# Scopes of a key; `chat` covers every endpoint that answers a conversation or continues a text.
# `operator` reads other users' turns, so a key without named scopes does not have it.
OPERATOR = "operator"
SCOPES = ("chat", "embeddings", "feedback", "metrics", "models", "moderations", OPERATOR)
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key: its user's name, first characters, `scopes` (None: all), limits, and the model ids that it may ask
    for besides those that the stack publishes."""

    digest: str
    name: str
    prefix: str
    created: datetime
    revoked: datetime | None = None
    scopes: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    models: tuple[str, ...] = ()
    usd_per_day: float | None = None


def digest(key: str) -> str:
    """Return the lowercase hexadecimal SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def create(
    database: Database,
    name: str,
    *,
    scopes: Sequence[str] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_day: int | None = None,
    models: Sequence[str] = (),
    usd_per_day: float | None = None,
) -> str:
    """Create a key and return it; only its digest is stored.

    Raises DemeanorError for an empty name, an unknown scope, or a limit below 1.
    """
    if not name.strip() or len(name) > 128 or not name.isprintable():
        raise UsageError(f"keys: name: got {name!r}, wanted 1 to 128 printable characters")
    for scope in scopes or ():
        if scope not in SCOPES:
            raise UsageError(f"keys: scopes: {unknown(scope, SCOPES, noun='scope')}")
    if scopes is not None and not scopes:
        raise UsageError(
            f"keys: scopes: got none, wanted at least one of {', '.join(SCOPES)}; "
            "leave it out to allow everything"
        )
    for what, limit in (("requests_per_minute", requests_per_minute), ("tokens_per_day", tokens_per_day)):
        if limit is not None and limit < 1:
            raise UsageError(f"keys: {what}: got {limit}, wanted 1 or more; leave it out for no limit")
    if usd_per_day is not None and not 0 < usd_per_day < math.inf:
        raise UsageError(
            f"keys: usd_per_day: got {usd_per_day:g}, wanted more than 0; leave it out for no limit"
        )
    if wrong := [m for m in models if not m.strip() or "," in m or not m.isprintable()]:
        raise UsageError(f"keys: models: got {wrong[0]!r}, wanted a model id, such as NAME:sft")
    key = f"dm-{secrets.token_urlsafe(32)}"
    row = (
        digest(key),
        name,
        database.now().astimezone(UTC).isoformat(),
        key[:SHOWN],
        None if scopes is None else ",".join(sorted(set(scopes))),
        requests_per_minute,
        tokens_per_day,
        ",".join(models),
        usd_per_day,
    )
    insert = (
        "INSERT INTO keys (digest, name, created, prefix, scopes, requests_per_minute, tokens_per_day, models,"
        " usd_per_day) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    database.write(lambda c: c.execute(insert, row).rowcount).result()
    return key


def stored(database: Database) -> list[Key]:
    """Return all keys, revoked ones too, oldest first."""
    return [_key(row) for row in database.rows("SELECT * FROM keys ORDER BY created, digest")]


def revoke(database: Database, which: str) -> list[Key]:
    """Revoke every key of this name or with these first characters; returns those that were valid.

    Takes effect from the next request on, in running servers too.
    """
    stamp = database.now().astimezone(UTC).isoformat()

    def write(connection: Connection) -> list[Key]:
        query = (
            "SELECT * FROM keys WHERE (name = ? OR prefix = ?) AND revoked IS NULL ORDER BY created, digest"
        )
        found = [_key(row) for row in connection.execute(query, (which, which))]
        stamps = [(stamp, key.digest) for key in found]
        connection.executemany("UPDATE keys SET revoked = ? WHERE digest = ?", stamps)
        return found

    return database.write(write).result()


def find(database: Database, key: str) -> Key | None:
    """Return the stored key of this text; None if it is unknown or revoked."""
    rows = database.rows("SELECT * FROM keys WHERE digest = ? AND revoked IS NULL", digest(key))
    return _key(rows[0]) if rows else None


# ---- tokens spent on a day (UTC) ----


def day_of(time: datetime) -> str:
    """Return the day (UTC) on which tokens of a moment count."""
    return time.astimezone(UTC).date().isoformat()


def day_ends_s(now: datetime) -> float:
    """Return the seconds until the next day (UTC) begins."""
    now = now.astimezone(UTC)
    return (datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC) - now).total_seconds()


def spent(database: Database, key_digest: str, day: str) -> int:
    """Return the tokens taken on that day, open reservations included."""
    rows = database.rows("SELECT tokens FROM spending WHERE digest = ? AND day = ?", key_digest, day)
    return int(rows[0]["tokens"]) if rows else 0


def take(database: Database, key_digest: str, day: str, tokens: int, limit: int) -> Awaitable[bool]:
    """Take tokens of a day's limit before they are used; False, and none taken, if too few are left.

    Tokens taken before a crash stay taken until the day ends: a key can lose tokens that way, but never gain
    any.
    """

    def write(connection: Connection) -> bool:
        connection.execute(
            "INSERT INTO spending (digest, day, tokens) VALUES (?, ?, 0) ON CONFLICT DO NOTHING",
            (key_digest, day),
        )
        update = "UPDATE spending SET tokens = tokens + ? WHERE digest = ? AND day = ? AND tokens + ? <= ?"
        return connection.execute(update, (tokens, key_digest, day, tokens, limit)).rowcount == 1

    return database.queue(write)


def give_back(database: Database, key_digest: str, day: str, tokens: int) -> Awaitable[None]:
    """Give back unused tokens; a negative number takes what was used beyond the reservation, whatever the
    limit."""

    def write(connection: Connection) -> None:
        connection.execute(
            "UPDATE spending SET tokens = CASE WHEN tokens < ? THEN 0 ELSE tokens - ? END WHERE digest = ? AND day = ?",
            (tokens, tokens, key_digest, day),
        )

    return database.queue(write)


# ---- USD spent on a day (UTC), in whole billionths ----


@dataclass(frozen=True, slots=True)
class KeyCost:
    """What a key has spent: billionths of a USD, open reservations included, and calls whose price is not known."""

    nano_usd: int = 0
    unpriced: int = 0


def cost(database: Database, key_digest: str, days: str) -> KeyCost:
    """Return what a key spent on a day such as 2026-11-30, or in a month such as 2026-11."""
    rows = database.rows(
        "SELECT SUM(nano_usd) AS nano_usd, SUM(unpriced) AS unpriced FROM spending WHERE digest = ? AND day LIKE ?",
        key_digest,
        f"{days}%",
    )
    return KeyCost(int(rows[0]["nano_usd"] or 0), int(rows[0]["unpriced"] or 0))


def take_cost(database: Database, key_digest: str, day: str, nano: int, limit: int) -> Awaitable[bool]:
    """Take billionths of a USD of a day's limit before a call; False, and none taken, if too few are left."""

    def write(connection: Connection) -> bool:
        connection.execute(_DAY, (key_digest, day))
        update = (
            "UPDATE spending SET nano_usd = nano_usd + ? WHERE digest = ? AND day = ? AND nano_usd + ? <= ?"
        )
        return connection.execute(update, (nano, key_digest, day, nano, limit)).rowcount == 1

    return database.queue(write)


def book_cost(
    database: Database, key_digest: str, day: str, nano: int, *, unpriced: bool = False
) -> Awaitable[None]:
    """Add billionths of a USD to a day, whatever the limit; a negative number gives back."""

    def write(connection: Connection) -> None:
        connection.execute(_DAY, (key_digest, day))
        connection.execute(
            "UPDATE spending SET nano_usd = CASE WHEN nano_usd + ? < 0 THEN 0 ELSE nano_usd + ? END,"
            " unpriced = unpriced + ? WHERE digest = ? AND day = ?",
            (nano, nano, int(unpriced), key_digest, day),
        )

    return database.queue(write)


_DAY = "INSERT INTO spending (digest, day, tokens) VALUES (?, ?, 0) ON CONFLICT (digest, day) DO NOTHING"


def _key(row: StoredRow) -> Key:
    return Key(
        row["digest"],
        row["name"],
        row["prefix"],
        datetime.fromisoformat(row["created"]),
        revoked=datetime.fromisoformat(row["revoked"]) if row["revoked"] else None,
        scopes=tuple(row["scopes"].split(",")) if row["scopes"] is not None else None,
        requests_per_minute=row["requests_per_minute"],
        tokens_per_day=row["tokens_per_day"],
        models=tuple(filter(None, row["models"].split(","))),
        usd_per_day=row["usd_per_day"],
    )
