"""The tables, as migrations: applied in order, each once, all or nothing. An applied migration is never edited; add another."""

from __future__ import annotations

import sqlite3

from demeanor.errors import DemeanorError

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE turns (
            row INTEGER PRIMARY KEY, id TEXT NOT NULL, started TEXT NOT NULL, finished TEXT NOT NULL, user TEXT NOT NULL,
            variant TEXT NOT NULL, stack_key TEXT NOT NULL, turn TEXT NOT NULL, answer TEXT NOT NULL, finish_reason TEXT,
            refused_by TEXT, rule TEXT, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)""",
        "CREATE INDEX turns_id ON turns (id)",
        "CREATE INDEX turns_user ON turns (user, row)",
        """CREATE TABLE events (
            turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE, number INTEGER NOT NULL, kind TEXT NOT NULL,
            by TEXT NOT NULL, event TEXT NOT NULL, PRIMARY KEY (turn, number)) WITHOUT ROWID""",
        """CREATE TABLE feedback (
            row INTEGER PRIMARY KEY, turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE, created TEXT NOT NULL,
            user TEXT NOT NULL, value REAL NOT NULL CHECK (value BETWEEN -1 AND 1), comment TEXT NOT NULL)""",
        "CREATE INDEX feedback_turn ON feedback (turn)",
        """CREATE TABLE keys (
            digest TEXT PRIMARY KEY, name TEXT NOT NULL, created TEXT NOT NULL, revoked TEXT) WITHOUT ROWID""",
    ),
    (
        "ALTER TABLE keys ADD COLUMN prefix TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE keys ADD COLUMN scopes TEXT",
        "ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER",
        "ALTER TABLE keys ADD COLUMN tokens_per_day INTEGER",
        """CREATE TABLE spending (
            digest TEXT NOT NULL REFERENCES keys (digest) ON DELETE CASCADE, day TEXT NOT NULL, tokens INTEGER NOT NULL CHECK (tokens >= 0),
            PRIMARY KEY (digest, day)) WITHOUT ROWID""",
    ),
    ("ALTER TABLE feedback ADD COLUMN corrected TEXT",),
)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a database up to date. Raises DemeanorError for one that a newer version wrote, or that is not ours."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        if version > len(MIGRATIONS):
            raise DemeanorError(
                f"the database has schema {version}; this version of demeanor knows {len(MIGRATIONS)}. Upgrade demeanor."
            )
        if version == 0 and tables:
            raise DemeanorError(
                f"the database has tables that are not ours: {', '.join(sorted(tables)[:5])}. Name another file."
            )
        for statement in (s for migration in MIGRATIONS[version:] for s in migration):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS):d}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
