"""Labelling queues in the database: items with sampled answers, invitations, and the labels that were given.

In: a Database. Out: queues, items, invitations, labels, progress. store/label_work.py gives out the work. Only the SHA-256 of a
link's token is stored.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

from demeanor.core.errors import UsageError, unknown
from demeanor.store.database import Database, storable
from demeanor.store.keys import digest

Role: TypeAlias = Literal["labeller", "adjudicator", "owner", "judge"]
"""What somebody may do; `judge` is no person and gets no link: a model whose labels stand beside those of people."""
Choice: TypeAlias = Literal["ranked", "tie", "all_bad", "skipped"]
ROLES: tuple[Role, ...] = ("labeller", "adjudicator", "owner")
CHOICES: tuple[Choice, ...] = ("ranked", "tie", "all_bad", "skipped")
ADJUDICATION = -1
"""The slot of an item whose labels disagree."""
MAX_ANSWERS = 9


@dataclass(frozen=True, slots=True)
class LabelAnswer:
    """One answer of an item: its text and what made it; `logprobs` (nats) of its tokens as they were drawn."""

    text: str
    model: str = ""
    stack_key: str = ""
    seed: int | None = None
    logprobs: tuple[float, ...] = ()
    turn_id: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """What each reward model gave it, by stage; for the queue by uncertainty."""


@dataclass(frozen=True, slots=True)
class LabelItem:
    """A prompt (OpenAI's messages) with 2 to 9 answers; `gold` are the ranks that a check expects (0 is best)."""

    id: str
    number: int
    prompt: tuple[Mapping[str, Any], ...]
    answers: tuple[LabelAnswer, ...]
    gold: tuple[int, ...] | None = None
    arm: str = ""
    priority: float = 0.0
    source: str = ""


@dataclass(frozen=True, slots=True)
class LabelQueue:
    """A queue: how many labellers see each item, for how long a claim is theirs (s), and every how many labels a gold
    check comes (0: never)."""

    name: str
    labellers_per_item: int = 1
    lease_s: float = 900.0
    gold_every: int = 10
    question: str = "Which answer does better what the request asks for?"
    made: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Who may work on a queue, and as what; `expires` is a time in ISO 8601, or None."""

    digest: str
    queue: str
    name: str
    role: Role
    created: str
    expires: str | None = None
    revoked: str | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """An item that is one labeller's until `expires` (s since 1970); `shown` are answer numbers in the order of the page."""

    item: LabelItem
    shown: tuple[int, ...]
    expires: float
    is_adjudication: bool = False


@dataclass(frozen=True, slots=True)
class GivenLabel:
    """One labeller's opinion: ranks by answer number (0 is best), all 0 for a tie; `shown` is the order they saw."""

    item: str
    labeller: str
    role: Role
    choice: Choice
    ranks: tuple[int, ...]
    shown: tuple[int, ...]
    reason: str
    ms: int
    created: str
    revisions: int = 0


# ---- queues and items ----


def create(database: Database, queue: LabelQueue, items: Sequence[LabelItem]) -> None:
    """Store a queue with its items and slots. Raises UsageError for a name that is taken or items that cannot be labelled."""
    _check(queue, items)
    if find_queue(database, queue.name) is not None:
        raise UsageError(f"label: a queue named '{queue.name}' is there already; give another --name")
    stamp = stamp_of(database)

    def write(connection: Any) -> None:
        connection.execute(
            "INSERT INTO label_queues (name, settings, created) VALUES (?, ?, ?)",
            (queue.name, _settings(queue), stamp),
        )
        _insert(connection, queue, items)

    database.write(write).result()


def add(database: Database, queue: LabelQueue, items: Sequence[LabelItem]) -> None:
    """Add items to a queue that is there."""
    _check(queue, items)
    database.write(lambda connection: _insert(connection, queue, items)).result()


def _check(queue: LabelQueue, items: Sequence[LabelItem]) -> None:
    if not queue.name.strip() or len(queue.name) > 64 or not queue.name.isprintable():
        raise UsageError(f"label: name: got {queue.name!r}, wanted 1 to 64 printable characters")
    if queue.labellers_per_item < 1 or queue.lease_s <= 0 or queue.gold_every < 0:
        raise UsageError(
            "label: wanted at least 1 labeller an item, a lease above 0 s, and gold checks every 0 or more"
        )
    for item in items:
        if not 2 <= len(item.answers) <= MAX_ANSWERS:
            raise UsageError(
                f"label: {item.source or item.id}: got {len(item.answers)} answers, wanted 2 to {MAX_ANSWERS}"
            )
        if item.gold is not None and len(item.gold) != len(item.answers):
            raise UsageError(
                f"label: {item.source or item.id}: gold: wanted a rank for each of {len(item.answers)} answers"
            )


def _insert(connection: Any, queue: LabelQueue, items: Sequence[LabelItem]) -> None:
    connection.executemany(
        "INSERT INTO label_items (id, queue, number, prompt, answers, gold, arm, priority, source)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                item.id,
                queue.name,
                item.number,
                _json(list(item.prompt)),
                _json([asdict(answer) for answer in item.answers]),
                None if item.gold is None else json.dumps(item.gold),
                item.arm,
                item.priority,
                storable(item.source),
            )
            for item in items
        ],
    )
    slots = [(item.id, n) for item in items if item.gold is None for n in range(queue.labellers_per_item)]
    connection.executemany("INSERT INTO label_slots (item, slot) VALUES (?, ?)", slots)


def queues(database: Database) -> list[LabelQueue]:
    """Return all queues, oldest first."""
    return [_queue(row) for row in database.rows("SELECT * FROM label_queues ORDER BY created, name")]


def find_queue(database: Database, name: str) -> LabelQueue | None:
    """Return the queue of this name."""
    found = database.rows("SELECT * FROM label_queues WHERE name = ?", name)
    return _queue(found[0]) if found else None


def queue_of(database: Database, name: str | None) -> LabelQueue:
    """Return the queue of this name, or the only one there is. Raises UsageError."""
    every = queues(database)
    if name is None and len(every) == 1:
        return every[0]
    for queue in every:
        if queue.name == name:
            return queue
    names = [queue.name for queue in every]
    if not names:
        raise UsageError("label: the database has no queue; make one with `demeanor label create`")
    if name is None:
        raise UsageError(
            f"label: the database has {len(names)} queues; name one with --queue: {', '.join(names)}"
        )
    raise UsageError(f"label: {unknown(name, names, noun='queue')}")


def items_of(database: Database, queue: str) -> list[LabelItem]:
    """Return the items of a queue in their order, gold checks included."""
    found = database.rows("SELECT * FROM label_items WHERE queue = ? ORDER BY number, id", queue)
    return [item_of(row) for row in found]


# ---- invitations ----


def invite(
    database: Database, queue: str, name: str, role: str = "labeller", valid_s: float | None = None
) -> str:
    """Create a link's token for a person and return it; only its digest is stored. Raises UsageError."""
    if role not in ROLES:
        raise UsageError(f"label: {unknown(role, ROLES, noun='role')}")
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise UsageError(f"label: labeller: got {name!r}, wanted 1 to 64 printable characters")
    if valid_s is not None and valid_s <= 0:
        raise UsageError(f"label: valid: got {valid_s:g} s, wanted more than 0")
    queue_of(database, queue)
    token, now = f"dl-{secrets.token_urlsafe(32)}", database.now()
    try:
        expires = None if valid_s is None else (now + timedelta(seconds=valid_s)).astimezone(UTC).isoformat()
    except OverflowError:
        raise UsageError(f"label: valid: got {valid_s:g} s, which no calendar holds") from None
    row = (digest(token), queue, storable(name), role, now.astimezone(UTC).isoformat(), expires)
    insert = "INSERT INTO label_invitations (digest, queue, name, role, created, expires) VALUES (?, ?, ?, ?, ?, ?)"
    database.write(lambda c: c.execute(insert, row).rowcount).result()
    return token


def invitations(database: Database, queue: str) -> list[Invitation]:
    """Return the invitations to a queue, oldest first."""
    found = database.rows("SELECT * FROM label_invitations WHERE queue = ? ORDER BY created, digest", queue)
    return [Invitation(**{name: row[name] for name in Invitation.__slots__}) for row in found]


def revoke(database: Database, queue: str, name: str) -> int:
    """Revoke a person's links to a queue, from their next request on, and free what they hold; returns how many links."""
    stamp, value = stamp_of(database), storable(name)

    def write(connection: Any) -> int:
        update = "UPDATE label_invitations SET revoked = ? WHERE queue = ? AND name = ? AND revoked IS NULL"
        count: int = connection.execute(update, (stamp, queue, value)).rowcount
        connection.execute(
            "UPDATE label_slots SET labeller = NULL, expires = NULL, shown = NULL WHERE labeller = ? AND done IS NULL"
            " AND item IN (SELECT id FROM label_items WHERE queue = ?)",
            (value, queue),
        )
        return count

    return database.write(write).result()


def find_invitation(database: Database, token: str) -> Invitation | None:
    """Return the invitation of a link's token; None if it is unknown, revoked or expired."""
    found = database.rows(
        "SELECT * FROM label_invitations WHERE digest = ? AND revoked IS NULL", digest(token)
    )
    if not found:
        return None
    invitation = Invitation(**{name: found[0][name] for name in Invitation.__slots__})
    if invitation.expires is not None and datetime.fromisoformat(invitation.expires) <= database.now():
        return None
    return invitation


# ---- what was given ----


def labels_of(database: Database, queue: str) -> list[GivenLabel]:
    """Return every label of a queue, oldest first."""
    found = database.rows(
        "SELECT l.* FROM labels l JOIN label_items i ON i.id = l.item WHERE i.queue = ? ORDER BY l.created, l.item, l.labeller",
        queue,
    )
    return [label_of(row) for row in found]


def labels_of_item(database: Database, item: str) -> list[GivenLabel]:
    """Return the labels of one item, oldest first."""
    found = database.rows("SELECT * FROM labels WHERE item = ? ORDER BY created, labeller", item)
    return [label_of(row) for row in found]


def last_label(database: Database, who: Invitation) -> tuple[LabelItem, GivenLabel] | None:
    """Return a labeller's latest label that can be changed, with its item."""
    found = database.rows(
        "SELECT l.* FROM labels l JOIN label_items i ON i.id = l.item WHERE i.queue = ? AND l.labeller = ?"
        " AND l.choice <> 'skipped' AND l.role = ? ORDER BY l.created DESC, i.number DESC LIMIT 1",
        who.queue,
        who.name,
        "adjudicator" if who.role == "adjudicator" else "labeller",
    )
    if not found:
        return None
    item = database.rows("SELECT * FROM label_items WHERE id = ?", found[0]["item"])[0]
    return item_of(item), label_of(found[0])


def count_labels(database: Database, queue: str, labeller: str | None = None) -> int:
    """Return how many labels a queue has, revisions included, or how many items one labeller has labelled."""
    if labeller is not None:
        query = (
            "SELECT COUNT(*) AS n FROM labels l JOIN label_items i ON i.id = l.item"
            " WHERE i.queue = ? AND l.labeller = ? AND l.choice <> 'skipped'"
        )
        return int(database.rows(query, queue, labeller)[0]["n"])
    query = (
        "SELECT COUNT(*) + COALESCE(SUM(l.revisions), 0) AS n FROM labels l JOIN label_items i ON i.id = l.item"
        " WHERE i.queue = ?"
    )
    return int(database.rows(query, queue)[0]["n"])


def progress(database: Database, queue: str) -> dict[str, int]:
    """Return counts: items, labels wanted, given and being made, items to adjudicate and adjudicated."""
    now = database.now().timestamp()
    row = database.rows(
        "SELECT COUNT(DISTINCT s.item) AS items, SUM(CASE WHEN s.slot >= 0 THEN 1 ELSE 0 END) AS wanted,"
        " SUM(CASE WHEN s.slot >= 0 AND s.done IS NOT NULL THEN 1 ELSE 0 END) AS given,"
        " SUM(CASE WHEN s.done IS NULL AND s.labeller IS NOT NULL AND s.expires >= ? THEN 1 ELSE 0 END) AS claimed,"
        " SUM(CASE WHEN s.slot < 0 THEN 1 ELSE 0 END) AS disagreements,"
        " SUM(CASE WHEN s.slot < 0 AND s.done IS NOT NULL THEN 1 ELSE 0 END) AS adjudicated"
        " FROM label_slots s JOIN label_items i ON i.id = s.item WHERE i.queue = ? AND i.gold IS NULL",
        now,
        queue,
    )[0]
    names = ("items", "wanted", "given", "claimed", "disagreements", "adjudicated")
    return {name: int(row[name] or 0) for name in names}


def labeller_hash(queue: str, name: str) -> str:
    """Return what stands for a labeller outside of the database."""
    return hashlib.sha256(f"labeller/{queue}/{name}".encode()).hexdigest()[:12]


def delete_queue(database: Database, queue: str) -> None:
    """Delete a queue with its items, invitations and labels."""
    statements = (
        "DELETE FROM labels WHERE item IN (SELECT id FROM label_items WHERE queue = ?)",
        "DELETE FROM label_slots WHERE item IN (SELECT id FROM label_items WHERE queue = ?)",
        "DELETE FROM label_items WHERE queue = ?",
        "DELETE FROM label_invitations WHERE queue = ?",
        "DELETE FROM label_queues WHERE name = ?",
    )

    def write(connection: Any) -> None:
        for statement in statements:
            connection.execute(statement, (queue,))

    database.write(write).result()


# ---- rows ----


def _queue(row: Any) -> LabelQueue:
    return LabelQueue(row["name"], **json.loads(row["settings"]), created=row["created"])


def _settings(queue: LabelQueue) -> str:
    return _json({k: v for k, v in asdict(queue).items() if k not in ("name", "created")})


def item_of(row: Any) -> LabelItem:
    answers = tuple(
        LabelAnswer(**{**answer, "logprobs": tuple(answer["logprobs"])})
        for answer in json.loads(row["answers"])
    )
    gold = None if row["gold"] is None else tuple(json.loads(row["gold"]))
    prompt = tuple(json.loads(row["prompt"]))
    return LabelItem(
        row["id"], row["number"], prompt, answers, gold, row["arm"], row["priority"], row["source"]
    )


def label_of(row: Any) -> GivenLabel:
    found = {name: row[name] for name in GivenLabel.__slots__}
    return GivenLabel(
        **{**found, "ranks": tuple(json.loads(row["ranks"])), "shown": tuple(json.loads(row["shown"]))}
    )


def _json(value: Any) -> str:
    return storable(json.dumps(value, ensure_ascii=True, default=str))


def stamp_of(database: Database) -> str:
    return database.now().astimezone(UTC).isoformat()
