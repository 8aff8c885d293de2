"""The schema of the database as a list of migrations, applied in order, each once; and how they are applied.

They are written once, for SQLite; store/backends.py translates them for PostgreSQL. An applied migration is never
edited: append one, with `?` for values, the types TEXT, INTEGER, REAL and BLOB, and no functions of one database.
"""

from __future__ import annotations

import contextlib

from demeanor.core.errors import DemeanorError
from demeanor.store.backends import Backend, Connection

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
    (  # the pages: store/comparisons.py, store/marks.py, store/conversations.py; reasons are codes, joined by commas
        "ALTER TABLE feedback ADD COLUMN reasons TEXT NOT NULL DEFAULT ''",
        """CREATE TABLE comparisons (
            id TEXT PRIMARY KEY, created TEXT NOT NULL, user TEXT NOT NULL,
            first INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE,
            second INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE,
            verdict TEXT NOT NULL, blind INTEGER NOT NULL, comment TEXT NOT NULL)""",
        "CREATE INDEX comparisons_first ON comparisons (first)",
        "CREATE INDEX comparisons_second ON comparisons (second)",
        """CREATE TABLE marks (
            turn INTEGER NOT NULL REFERENCES turns (row) ON DELETE CASCADE, rule TEXT NOT NULL,
            mark TEXT NOT NULL, note TEXT NOT NULL, user TEXT NOT NULL, created TEXT NOT NULL,
            PRIMARY KEY (turn, rule))""",
        """CREATE TABLE conversations (
            user TEXT NOT NULL, id TEXT NOT NULL, title TEXT NOT NULL, words TEXT NOT NULL, body TEXT NOT NULL,
            created TEXT NOT NULL, updated TEXT NOT NULL, PRIMARY KEY (user, id))""",
        "CREATE INDEX conversations_updated ON conversations (user, updated)",
    ),
    (  # live traffic: what each shadow and evaluator was declared as
        """CREATE TABLE job_declarations (
            kind TEXT NOT NULL, name TEXT NOT NULL, version TEXT NOT NULL, declared TEXT NOT NULL,
            created TEXT NOT NULL, PRIMARY KEY (kind, name, version))""",
    ),
    ("CREATE TABLE used_approvals (id TEXT PRIMARY KEY, expires DOUBLE PRECISION NOT NULL)",),
    (  # what was made of recorded turns: store/lineage.py
        """CREATE TABLE derived (
            turn TEXT NOT NULL, user TEXT NOT NULL, kind TEXT NOT NULL, artefact TEXT NOT NULL,
            content TEXT NOT NULL, created TEXT NOT NULL, forgotten TEXT,
            PRIMARY KEY (turn, kind, artefact, content))""",
        "CREATE INDEX derived_user ON derived (user)",
        "CREATE INDEX turns_finished ON turns (finished)",
    ),
    (  # approvals are kept here instead of in encrypted tokens: store/waiting_approvals.py
        "DROP TABLE used_approvals",
        """CREATE TABLE waiting_approvals (
            turn TEXT PRIMARY KEY, user TEXT NOT NULL, token TEXT NOT NULL UNIQUE, expires DOUBLE PRECISION NOT NULL,
            about TEXT NOT NULL, used INTEGER NOT NULL)""",
    ),
)


def migrate(connection: Connection, backend: Backend) -> None:
    """Apply the missing migrations in one transaction; raises DemeanorError for a newer or a foreign database."""
    for statement in backend.begin:
        connection.execute(statement)
    try:
        version, tables = backend.schema_version(connection), backend.tables(connection)
        if version > len(MIGRATIONS):
            raise DemeanorError(
                f"the database has schema {version}; this version of demeanor knows {len(MIGRATIONS)}. "
                "Upgrade demeanor."
            )
        if version == 0 and tables:
            raise DemeanorError(
                f"the database has tables that are not ours: {', '.join(sorted(tables)[:5])}. "
                f"Name another {backend.place}."
            )
        for statement in (s for migration in MIGRATIONS[version:] for s in migration):
            connection.execute(statement)
        if version < len(MIGRATIONS):
            backend.set_schema_version(connection, len(MIGRATIONS))
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(*backend.errors):
            connection.execute("ROLLBACK")
        raise
