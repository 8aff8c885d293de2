"""Labelling queues in the database: items with sampled answers, invitations, leases and labels.

In: a Database. Out: queues, claims, labels. An item has as many slots as labellers are wanted; a slot is taken in one
UPDATE that fails if it is held, so no two labellers, threads or processes do the same work. A label and the end of its
slot are one transaction, so what was acknowledged is there after kill -9. Only the SHA-256 of a link's token is stored.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

from demeanor.core.errors import DemeanorError, UsageError, unknown
from demeanor.store.database import Database, storable
from demeanor.store.keys import digest
from demeanor.store.rotations import rotation, shown_order

Role: TypeAlias = Literal["labeller", "adjudicator", "owner"]
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
    stamp = _stamp(database)

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
    return [_item(row) for row in found]


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
    expires = None if valid_s is None else (now + timedelta(seconds=valid_s)).astimezone(UTC).isoformat()
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
    stamp, value = _stamp(database), storable(name)

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


# ---- work ----


def claim(database: Database, queue: LabelQueue, invitation: Invitation) -> Claim | None:
    """Give a labeller their open item, else a gold check that is due, else the first free one; None if there is none.

    An adjudicator gets items whose labels disagree, and never one that they labelled.
    """
    now = database.now().timestamp()

    def write(connection: Any) -> Claim | None:
        return _open_claim(connection, queue, invitation, now) or _new_claim(
            connection, queue, invitation, now
        )

    return database.write(write).result()


def _open_claim(connection: Any, queue: LabelQueue, who: Invitation, now: float) -> Claim | None:
    """What the labeller has before them, its lease renewed."""
    row = connection.execute(
        "SELECT s.item, s.slot, s.shown FROM label_slots s JOIN label_items i ON i.id = s.item"
        " WHERE i.queue = ? AND s.labeller = ? AND s.done IS NULL AND s.slot BETWEEN ? AND ?"
        " ORDER BY i.number, s.slot LIMIT 1",
        (queue.name, who.name, *_slots(who)),
    ).fetchone()
    if row is None:
        return None
    expires = now + queue.lease_s
    connection.execute(
        "UPDATE label_slots SET expires = ? WHERE item = ? AND slot = ?", (expires, row["item"], row["slot"])
    )
    item = _item(connection.execute("SELECT * FROM label_items WHERE id = ?", (row["item"],)).fetchone())
    return Claim(item, tuple(json.loads(row["shown"])), expires, row["slot"] == ADJUDICATION)


def _new_claim(connection: Any, queue: LabelQueue, who: Invitation, now: float) -> Claim | None:
    if who.role != "adjudicator" and (check := _gold_due(connection, queue, who)) is not None:
        shown, expires = _order(connection, queue, check, who), now + queue.lease_s
        slot = connection.execute(
            "SELECT COUNT(*) AS n FROM label_slots WHERE item = ?", (check.id,)
        ).fetchone()["n"]
        connection.execute(
            "INSERT INTO label_slots (item, slot, labeller, expires, shown) VALUES (?, ?, ?, ?, ?)",
            (check.id, slot, who.name, expires, json.dumps(shown)),
        )
        return Claim(check, shown, expires)
    while True:
        row = connection.execute(
            "SELECT s.item, s.slot FROM label_slots s JOIN label_items i ON i.id = s.item"
            " WHERE i.queue = ? AND i.gold IS NULL AND s.done IS NULL AND s.slot BETWEEN ? AND ?"
            " AND (s.labeller IS NULL OR s.expires < ?)"
            " AND NOT EXISTS (SELECT 1 FROM label_slots o WHERE o.item = s.item AND o.labeller = ?)"
            " AND NOT EXISTS (SELECT 1 FROM labels l WHERE l.item = s.item AND l.labeller = ?)"
            " ORDER BY i.number, s.slot LIMIT 1",
            (queue.name, *_slots(who), now, who.name, who.name),
        ).fetchone()
        if row is None:
            return None
        item = _item(connection.execute("SELECT * FROM label_items WHERE id = ?", (row["item"],)).fetchone())
        shown, expires = _order(connection, queue, item, who), now + queue.lease_s
        taken = connection.execute(
            "UPDATE label_slots SET labeller = ?, expires = ?, shown = ? WHERE item = ? AND slot = ? AND done IS NULL"
            " AND (labeller IS NULL OR expires < ?)",
            (who.name, expires, json.dumps(shown), row["item"], row["slot"], now),
        ).rowcount
        if taken == 1:  # else another process took it between the two statements
            return Claim(item, shown, expires, row["slot"] == ADJUDICATION)


def _slots(who: Invitation) -> tuple[int, int]:
    """The first and the last number of the slots that a role works on."""
    return (ADJUDICATION, ADJUDICATION) if who.role == "adjudicator" else (0, 2**31 - 1)


def _gold_due(connection: Any, queue: LabelQueue, who: Invitation) -> LabelItem | None:
    """The next gold check of this labeller, at a place in each `gold_every` labels that they cannot foresee."""
    if not queue.gold_every:
        return None
    count = connection.execute(
        "SELECT COUNT(*) AS n, COUNT(i.gold) AS checks FROM labels l JOIN label_items i ON i.id = l.item"
        " WHERE i.queue = ? AND l.labeller = ? AND l.role = 'labeller'",
        (queue.name, who.name),
    ).fetchone()
    block, place = divmod(count["n"], queue.gold_every)
    due = int(hashlib.sha256(f"{who.digest}/{block}".encode()).hexdigest(), 16) % queue.gold_every
    if count["checks"] > block or place < due:
        return None
    row = connection.execute(
        "SELECT * FROM label_items i WHERE i.queue = ? AND i.gold IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM labels l WHERE l.item = i.id AND l.labeller = ?) ORDER BY i.number LIMIT 1",
        (queue.name, who.name),
    ).fetchone()
    return None if row is None else _item(row)


def _order(connection: Any, queue: LabelQueue, item: LabelItem, who: Invitation) -> tuple[int, ...]:
    """The order in which the answers are shown: the one that this item, then this labeller, has had least often."""
    of_item = connection.execute(
        "SELECT shown FROM label_slots WHERE item = ? AND shown IS NOT NULL", (item.id,)
    ).fetchall()
    of_labeller = connection.execute(
        "SELECT s.shown FROM label_slots s JOIN label_items i ON i.id = s.item"
        " WHERE i.queue = ? AND s.labeller = ? AND s.shown IS NOT NULL",
        (queue.name, who.name),
    ).fetchall()
    seen = [json.loads(row["shown"]) for row in of_labeller]
    used = [rotation(json.loads(row["shown"])) for row in of_item]
    size = len(item.answers)
    return shown_order(
        size, used, [rotation(order) for order in seen if len(order) == size], f"{item.id}/{who.name}"
    )


def give(
    database: Database,
    queue: LabelQueue,
    invitation: Invitation,
    item_id: str,
    choice: Choice,
    ranks: Sequence[int],
    *,
    reason: str = "",
    ms: int = 0,
) -> GivenLabel:
    """Store a label and end its slot, in one transaction; the same label again is acknowledged again, another replaces it.

    Raises DemeanorError if the item is not (or no longer) this labeller's, ValueError for ranks that do not fit it.
    """
    stamp = _stamp(database)

    def write(connection: Any) -> GivenLabel:
        row = connection.execute(
            "SELECT * FROM label_items WHERE id = ? AND queue = ?", (storable(item_id), queue.name)
        ).fetchone()
        if row is None:
            raise DemeanorError(f"item: no item of this queue has the id '{item_id}'")
        item = _item(row)
        checked = _checked_ranks(choice, ranks, len(item.answers))
        slot, shown = _held(connection, item, invitation)
        role: Role = "adjudicator" if slot == ADJUDICATION else "labeller"
        label = GivenLabel(
            item.id, invitation.name, role, choice, checked, shown, storable(reason), ms, stamp
        )
        label = _put(connection, label)
        _end(connection, queue, item, slot, invitation, choice, stamp)
        return label

    return database.write(write).result()


def _checked_ranks(choice: Choice, ranks: Sequence[int], size: int) -> tuple[int, ...]:
    if choice not in CHOICES:
        raise ValueError(f"choice: {unknown(choice, CHOICES, noun='choice')}")
    if choice != "ranked":
        return (0,) * size
    if len(ranks) != size or any(not 0 <= rank < size for rank in ranks):
        raise ValueError(f"ranks: got {list(ranks)}, wanted {size} numbers from 0 (best) to {size - 1}")
    if len(set(ranks)) == 1:
        raise ValueError("ranks: all the same; wanted choice 'tie' or 'all_bad'")
    order = sorted(set(ranks))
    return tuple(order.index(rank) for rank in ranks)  # 0, 2, 2 says what 0, 1, 1 says


def _held(connection: Any, item: LabelItem, who: Invitation) -> tuple[int, tuple[int, ...]]:
    """The slot that this labeller holds or has ended, and the order they saw. Raises DemeanorError if there is none."""
    row = connection.execute(
        "SELECT slot, shown FROM label_slots WHERE item = ? AND labeller = ? AND shown IS NOT NULL",
        (item.id, who.name),
    ).fetchone()
    if row is None:
        raise DemeanorError("item: your time for it ended and another labeller has it now; take the next one")
    if (row["slot"] == ADJUDICATION) != (who.role == "adjudicator"):
        raise DemeanorError(f"item: it is not open to the role '{who.role}'")
    return int(row["slot"]), tuple(json.loads(row["shown"]))


def _put(connection: Any, label: GivenLabel) -> GivenLabel:
    """Insert the label, or replace this labeller's earlier one; equal ones change nothing."""
    key = (label.item, label.labeller)
    old = connection.execute("SELECT * FROM labels WHERE item = ? AND labeller = ?", key).fetchone()
    if old is not None:
        before = _label(old)
        if replace(before, created=label.created, ms=label.ms, revisions=0) == label:
            return before
        label = replace(label, revisions=before.revisions + 1)
        connection.execute("DELETE FROM labels WHERE item = ? AND labeller = ?", key)
    connection.execute(
        "INSERT INTO labels (item, labeller, role, choice, ranks, shown, reason, ms, created, revisions)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *key,
            label.role,
            label.choice,
            json.dumps(label.ranks),
            json.dumps(label.shown),
            label.reason,
            label.ms,
            label.created,
            label.revisions,
        ),
    )
    return label


def _end(
    connection: Any,
    queue: LabelQueue,
    item: LabelItem,
    slot: int,
    who: Invitation,
    choice: Choice,
    stamp: str,
) -> None:
    """End a slot, or free it for somebody else if it was skipped; open the adjudication of an item that needs it."""
    if choice == "skipped" and item.gold is None:
        connection.execute(
            "UPDATE label_slots SET labeller = NULL, expires = NULL, shown = NULL, done = NULL WHERE item = ? AND slot = ?",
            (item.id, slot),
        )
        return
    connection.execute(
        "UPDATE label_slots SET done = ?, expires = NULL WHERE item = ? AND slot = ?", (stamp, item.id, slot)
    )
    if slot == ADJUDICATION or item.gold is not None:
        return
    left = connection.execute(
        "SELECT COUNT(*) AS n FROM label_slots WHERE item = ? AND slot >= 0 AND done IS NULL", (item.id,)
    ).fetchone()["n"]
    given = connection.execute(
        "SELECT * FROM labels WHERE item = ? AND role = 'labeller'", (item.id,)
    ).fetchall()
    free = "DELETE FROM label_slots WHERE item = ? AND slot = ? AND done IS NULL"
    if not left and disagree([_label(row) for row in given]):
        connection.execute(
            "INSERT INTO label_slots (item, slot) VALUES (?, ?) ON CONFLICT (item, slot) DO NOTHING",
            (item.id, ADJUDICATION),
        )
    else:  # a revised label may end a disagreement
        connection.execute(free, (item.id, ADJUDICATION))


def disagree(labels: Sequence[GivenLabel]) -> bool:
    """Whether two labels of an item have no best answer in common, or one says that all are bad and another does not."""
    given = [label for label in labels if label.choice != "skipped"]
    if len({label.choice == "all_bad" for label in given}) > 1:
        return True
    best = [{n for n, rank in enumerate(label.ranks) if rank == 0} for label in given]
    return any(not (one & other) for i, one in enumerate(best) for other in best[:i])


# ---- what was given ----


def labels_of(database: Database, queue: str) -> list[GivenLabel]:
    """Return every label of a queue, oldest first."""
    found = database.rows(
        "SELECT l.* FROM labels l JOIN label_items i ON i.id = l.item WHERE i.queue = ? ORDER BY l.created, l.item, l.labeller",
        queue,
    )
    return [_label(row) for row in found]


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


def _item(row: Any) -> LabelItem:
    answers = tuple(
        LabelAnswer(**{**answer, "logprobs": tuple(answer["logprobs"])})
        for answer in json.loads(row["answers"])
    )
    gold = None if row["gold"] is None else tuple(json.loads(row["gold"]))
    prompt = tuple(json.loads(row["prompt"]))
    return LabelItem(
        row["id"], row["number"], prompt, answers, gold, row["arm"], row["priority"], row["source"]
    )


def _label(row: Any) -> GivenLabel:
    found = {name: row[name] for name in GivenLabel.__slots__}
    return GivenLabel(
        **{**found, "ranks": tuple(json.loads(row["ranks"])), "shown": tuple(json.loads(row["shown"]))}
    )


def _json(value: Any) -> str:
    return storable(json.dumps(value, ensure_ascii=True, default=str))


def _stamp(database: Database) -> str:
    return database.now().astimezone(UTC).isoformat()
