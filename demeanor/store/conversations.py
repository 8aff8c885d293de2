"""Conversations of the chat page, kept for users with keys: list, search, read, write, delete; each user's own only.

In: a user, and a conversation as the page keeps it (JSON text) with its title and words. Out: the same.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime

from demeanor.store.backends import Connection
from demeanor.store.database import Database

MAX_CONVERSATIONS = 2_000
"""Conversations of one user; the one that was changed longest ago makes room for a new one."""


@dataclass(frozen=True, slots=True)
class KeptConversation:
    """A conversation in a list."""

    id: str
    title: str
    created: datetime
    updated: datetime


def put(database: Database, user: str, id: str, *, title: str, words: str, body: str) -> Awaitable[None]:
    """Write a conversation, or write it anew; `words` is what a search looks through."""
    now = database.now().astimezone(UTC).isoformat()

    def write(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO conversations (user, id, title, words, body, created, updated) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (user, id) DO UPDATE SET title = excluded.title, words = excluded.words,"
            " body = excluded.body, updated = excluded.updated",
            (user, id, title, words.lower(), body, now, now),
        )
        connection.execute(
            "DELETE FROM conversations WHERE user = ? AND id IN (SELECT id FROM conversations WHERE user = ?"
            " ORDER BY updated DESC, id LIMIT 1000000 OFFSET ?)",
            (user, user, MAX_CONVERSATIONS),
        )

    return database.queue(write)


def conversations(
    database: Database, user: str, *, query: str = "", limit: int = 100, skip: int = 0
) -> list[KeptConversation]:
    """Return a user's conversations that contain `query` in any case, the one that was changed last first."""
    pattern = "%" + "".join(f"\\{c}" if c in "\\%_" else c for c in query.lower()) + "%"
    found = database.rows(
        "SELECT id, title, created, updated FROM conversations WHERE user = ? AND words LIKE ? ESCAPE '\\'"
        " ORDER BY updated DESC, id LIMIT ? OFFSET ?",
        user,
        pattern,
        limit,
        skip,
    )
    return [
        KeptConversation(
            r["id"],
            r["title"],
            datetime.fromisoformat(r["created"]),
            datetime.fromisoformat(r["updated"]),
        )
        for r in found
    ]


def body(database: Database, user: str, id: str) -> str | None:
    """Return a user's conversation as it was written; None if there is none of that id."""
    found = database.rows("SELECT body FROM conversations WHERE user = ? AND id = ?", user, id)
    return found[0]["body"] if found else None


def remove(database: Database, user: str, id: str) -> Awaitable[bool]:
    """Delete a user's conversation; False if there was none."""
    return database.queue(
        lambda c: c.execute("DELETE FROM conversations WHERE user = ? AND id = ?", (user, id)).rowcount > 0
    )
