"""Who labels what: an item is claimed for a time, labelled once by as many people as wanted, and adjudicated if they disagree.

In: a queue, an invitation. Out: claims, labels. An item has as many slots as labellers are wanted; a slot is taken in one UPDATE
that fails if it is held, so no two labellers, threads or processes do the same work. A label and the end of its slot are one
transaction, so what was acknowledged is there after kill -9.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from demeanor.core.errors import DemeanorError, unknown
from demeanor.store.database import Database, storable
from demeanor.store.labels import (
    ADJUDICATION,
    CHOICES,
    Choice,
    Claim,
    GivenLabel,
    Invitation,
    LabelItem,
    LabelQueue,
    Role,
    item_of,
    label_of,
    stamp_of,
)
from demeanor.store.rotations import rotation, shown_order


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
    item = item_of(connection.execute("SELECT * FROM label_items WHERE id = ?", (row["item"],)).fetchone())
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
        item = item_of(
            connection.execute("SELECT * FROM label_items WHERE id = ?", (row["item"],)).fetchone()
        )
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
    return None if row is None else item_of(row)


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
    stamp = stamp_of(database)

    def write(connection: Any) -> GivenLabel:
        row = connection.execute(
            "SELECT * FROM label_items WHERE id = ? AND queue = ?", (storable(item_id), queue.name)
        ).fetchone()
        if row is None:
            raise DemeanorError(f"item: no item of this queue has the id '{item_id}'")
        item = item_of(row)
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


def give_shown(
    database: Database,
    queue: LabelQueue,
    invitation: Invitation,
    item_id: str,
    choice: Choice,
    ranks_shown: Sequence[int],
    *,
    reason: str = "",
    ms: int = 0,
) -> GivenLabel:
    """`give`, with ranks in the order in which the answers were shown to this labeller."""
    row = database.rows(
        "SELECT shown FROM label_slots WHERE item = ? AND labeller = ? AND shown IS NOT NULL",
        item_id,
        invitation.name,
    )
    shown = json.loads(row[0]["shown"]) if row else []
    ranks = list(ranks_shown)
    if choice == "ranked" and len(ranks) == len(shown):
        by_answer = dict(zip(shown, ranks, strict=True))
        ranks = [by_answer[n] for n in range(len(shown))]
    return give(database, queue, invitation, item_id, choice, ranks, reason=reason, ms=ms)


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
        before = label_of(old)
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
    if not left and disagree([label_of(row) for row in given]):
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


def add_given(database: Database, queue: LabelQueue, given: Sequence[GivenLabel]) -> None:
    """Store labels that were given elsewhere, each in a slot of its own that is done; for imports."""
    stamp = stamp_of(database)
    slots: dict[str, int] = {}

    def write(connection: Any) -> None:
        for label in given:
            slot = slots[label.item] = slots.get(label.item, -1) + 1
            connection.execute("DELETE FROM label_slots WHERE item = ? AND slot = ?", (label.item, slot))
            connection.execute(
                "INSERT INTO label_slots (item, slot, labeller, shown, done) VALUES (?, ?, ?, ?, ?)",
                (label.item, slot, label.labeller, json.dumps(label.shown), stamp),
            )
            _put(connection, replace(label, created=label.created or stamp))

    database.write(write).result()


def add_judged(
    database: Database, queue: LabelQueue, judge: str, given: Sequence[tuple[str, tuple[int, ...]]]
) -> None:
    """Store a judge's ranks of items beside people's labels, in place of what it said before; they take no slot."""
    stamp = stamp_of(database)
    sizes = [(item, ranks) for item, ranks in given if ranks]

    def write(connection: Any) -> None:
        for item, ranks in sizes:
            choice: Choice = "tie" if len(set(ranks)) == 1 else "ranked"
            shown = tuple(range(len(ranks)))
            _put(connection, GivenLabel(item, judge, "judge", choice, ranks, shown, "", 0, stamp))

    database.write(write).result()
