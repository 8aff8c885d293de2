"""Labelling queues: one slot one labeller, nothing acknowledged is lost, orders are balanced, links end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from demeanor.core.errors import DemeanorError, UsageError
from demeanor.store import label_work, labels
from demeanor.store.database import Database, open_url
from demeanor.store.labels import Invitation, LabelAnswer, LabelItem, LabelQueue
from tests.conftest import each


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 30, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(database_url: str, clock: Clock) -> Iterator[Database]:
    made = open_url(database_url, root=Path(), now=clock)
    yield made
    made.close()


def items(count: int, answers: int = 2, gold: int = 0) -> list[LabelItem]:
    prompt = ({"role": "user", "content": "which ship?"},)
    texts = tuple(
        LabelAnswer(f"answer {n}", f"desk:{n}", "key", seed=n, logprobs=(-0.5,)) for n in range(answers)
    )
    ranks = tuple(range(answers))
    return [
        LabelItem(f"item-{n}", n, prompt, texts, ranks if n >= count else None) for n in range(count + gold)
    ]


def queue(
    database: Database, count: int = 4, *, answers: int = 2, labellers: int = 1, gold: int = 0, every: int = 0
) -> LabelQueue:
    made = LabelQueue("first", labellers, lease_s=60, gold_every=every, made={"variants": ["a", "b"]})
    labels.create(database, made, items(count, answers, gold))
    return labels.queue_of(database, "first")


def person(database: Database, name: str, role: str = "labeller") -> Invitation:
    found = labels.find_invitation(database, labels.invite(database, "first", name, role))
    assert found is not None
    return found


def test_a_queue_comes_back_as_it_was_stored(database: Database) -> None:
    made = queue(database, labellers=3)
    assert (made.labellers_per_item, made.lease_s, made.made) == (3, 60, {"variants": ["a", "b"]})
    assert labels.items_of(database, "first") == items(4)
    with pytest.raises(UsageError, match="there already"):
        labels.create(database, made, [])
    with pytest.raises(UsageError, match="Did you mean 'first'"):
        labels.queue_of(database, "frist")


def test_an_item_belongs_to_one_labeller_until_the_lease_ends(database: Database, clock: Clock) -> None:
    made = queue(database, 1)
    edda, odin = person(database, "edda"), person(database, "odin")
    first = label_work.claim(database, made, edda)
    assert first is not None
    assert label_work.claim(database, made, odin) is None
    clock.pass_s(59)
    assert label_work.claim(database, made, odin) is None
    again = label_work.claim(database, made, edda)  # asking again keeps the item and renews the lease
    assert again is not None
    assert (again.item, again.shown) == (first.item, first.shown)
    clock.pass_s(61)
    taken = label_work.claim(database, made, odin)
    assert taken is not None
    assert taken.item == first.item
    with pytest.raises(DemeanorError, match="another labeller has it now"):
        label_work.give(database, made, edda, "item-0", "ranked", (0, 1))
    assert label_work.give(database, made, odin, "item-0", "ranked", (0, 1)).labeller == "odin"


def test_a_late_label_counts_if_the_item_was_not_given_away(database: Database, clock: Clock) -> None:
    made, edda = queue(database, 1), person(database, "edda")
    label_work.claim(database, made, edda)
    clock.pass_s(3600)
    label_work.give(database, made, edda, "item-0", "tie", ())
    assert [label.choice for label in labels.labels_of(database, "first")] == ["tie"]


def test_every_item_is_seen_by_as_many_labellers_as_wanted_and_by_none_twice(database: Database) -> None:
    made = queue(database, 6, labellers=2)
    people = [person(database, name) for name in ("a", "b", "c")]
    going = True
    while going:
        going = False
        for who in people:
            found = label_work.claim(database, made, who)
            if found is not None:
                going = True
                label_work.give(database, made, who, found.item.id, "ranked", (0, 1))
    given = labels.labels_of(database, "first")
    assert Counter(label.item for label in given) == {f"item-{n}": 2 for n in range(6)}
    assert len({(label.item, label.labeller) for label in given}) == 12
    assert labels.progress(database, "first") == {
        "items": 6,
        "wanted": 12,
        "given": 12,
        "claimed": 0,
        "disagreements": 0,
        "adjudicated": 0,
    }


def test_threads_never_do_the_same_work(database: Database) -> None:
    made = queue(database, 40)
    done: list[str] = []

    def work(who: Invitation) -> None:
        while (found := label_work.claim(database, made, who)) is not None:
            label_work.give(database, made, who, found.item.id, "ranked", (1, 0))
            done.append(found.item.id)

    threads = [threading.Thread(target=work, args=(person(database, f"p{n}"),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(f"item-{n}" for n in range(40))


def test_the_same_label_is_acknowledged_twice_and_another_replaces_it(database: Database) -> None:
    made, edda = queue(database, 1), person(database, "edda")
    label_work.claim(database, made, edda)
    first = label_work.give(database, made, edda, "item-0", "ranked", (0, 1), reason="shorter", ms=900)
    assert label_work.give(database, made, edda, "item-0", "ranked", (0, 1), reason="shorter", ms=5) == first
    second = label_work.give(database, made, edda, "item-0", "all_bad", ())
    assert (second.revisions, second.ranks) == (1, (0, 0))
    assert labels.labels_of(database, "first") == [second]


@pytest.mark.parametrize(
    ("choice", "ranks", "said"),
    [
        ("ranked", (0,), "wanted 2 numbers"),
        ("ranked", (0, 2), "from 0"),
        ("ranked", (0, 0), "choice 'tie'"),
        ("best", (0, 1), "Known"),
    ],
)
def test_ranks_that_fit_no_item_are_refused(
    database: Database, choice: labels.Choice, ranks: tuple[int, ...], said: str
) -> None:
    made, edda = queue(database, 1), person(database, "edda")
    label_work.claim(database, made, edda)
    with pytest.raises(ValueError, match=said):
        label_work.give(database, made, edda, "item-0", choice, ranks)
    assert labels.labels_of(database, "first") == []


def test_a_skipped_item_goes_to_somebody_else_and_does_not_come_back(database: Database) -> None:
    made = queue(database, 1)
    edda, odin = person(database, "edda"), person(database, "odin")
    label_work.claim(database, made, edda)
    label_work.give(database, made, edda, "item-0", "skipped", ())
    assert label_work.claim(database, made, edda) is None
    assert label_work.claim(database, made, odin) is not None


def test_an_adjudicator_gets_what_labels_disagree_on_and_nothing_that_they_labelled(
    database: Database,
) -> None:
    made = queue(database, 3, labellers=2)
    edda, odin = person(database, "edda"), person(database, "odin")
    judge, also = person(database, "vera", "adjudicator"), person(database, "edda", "adjudicator")
    wanted = {"item-0": ((0, 1), (1, 0)), "item-1": ((0, 1), (0, 1)), "item-2": ((0, 1), None)}
    for who, place in ((edda, 0), (odin, 1)):
        for _ in range(3):
            found = label_work.claim(database, made, who)
            assert found is not None
            ranks = wanted[found.item.id][place]
            label_work.give(database, made, who, found.item.id, "ranked" if ranks else "all_bad", ranks or ())
    assert labels.progress(database, "first")["disagreements"] == 2
    assert label_work.claim(database, made, also) is None
    seen = []
    while (found := label_work.claim(database, made, judge)) is not None:
        assert found.is_adjudication
        seen.append(found.item.id)
        label_work.give(database, made, judge, found.item.id, "ranked", (1, 0), reason="read both")
    assert seen == ["item-0", "item-2"]
    given = [label for label in labels.labels_of(database, "first") if label.role == "adjudicator"]
    assert [label.labeller for label in given] == ["vera", "vera"]
    assert labels.progress(database, "first")["adjudicated"] == 2


def test_a_revised_label_ends_the_disagreement(database: Database) -> None:
    made = queue(database, 1, labellers=2)
    edda, odin = person(database, "edda"), person(database, "odin")
    for who, ranks in ((edda, (0, 1)), (odin, (1, 0))):
        label_work.claim(database, made, who)
        label_work.give(database, made, who, "item-0", "ranked", ranks)
    assert labels.progress(database, "first")["disagreements"] == 1
    label_work.give(database, made, odin, "item-0", "ranked", (0, 1))
    assert labels.progress(database, "first")["disagreements"] == 0


@pytest.mark.parametrize("answers", [2, 4, 9])
def test_every_answer_stands_in_every_place_equally_often(database: Database, answers: int) -> None:
    made = queue(database, 4 * answers, answers=answers, labellers=answers)
    people = [person(database, f"p{n}") for n in range(answers)]
    for who in people:
        while (found := label_work.claim(database, made, who)) is not None:
            label_work.give(database, made, who, found.item.id, "tie", ())
    given = labels.labels_of(database, "first")
    firsts = Counter((label.item, label.shown[0]) for label in each(given))
    assert set(firsts.values()) == {1}, "each item: every answer first once"
    of_first_labeller = Counter(label.shown[0] for label in given if label.labeller == "p0")
    assert set(of_first_labeller.values()) == {4}, "the first labeller: every answer first equally often"


def test_gold_checks_come_to_every_labeller_at_places_they_cannot_foresee(database: Database) -> None:
    made = queue(database, 40, labellers=2, gold=4, every=10)
    places = {}
    for name in ("a", "b"):
        who, order = person(database, name), []
        while (found := label_work.claim(database, made, who)) is not None:
            order.append(found.item.gold is not None)
            label_work.give(database, made, who, found.item.id, "ranked", (0, 1))
        places[name] = [n for n, is_check in enumerate(order) if is_check]
        assert [place // 10 for place in places[name]] == [0, 1, 2, 3]
    assert places["a"] != places["b"]
    assert labels.progress(database, "first")["wanted"] == 80, "checks are not part of the work"


def test_a_link_is_a_digest_and_ends_by_time_or_by_revoking(database: Database, clock: Clock) -> None:
    made = queue(database, 2)
    token = labels.invite(database, "first", "edda", valid_s=100)
    edda = labels.find_invitation(database, token)
    assert edda is not None
    assert (edda.queue, edda.name, edda.role) == ("first", "edda", "labeller")
    clock.pass_s(101)
    assert labels.find_invitation(database, token) is None
    other = labels.invite(database, "first", "odin")
    odin = labels.find_invitation(database, other)
    assert odin is not None
    assert label_work.claim(database, made, odin) is not None
    assert labels.revoke(database, "first", "odin") == 1
    assert labels.find_invitation(database, other) is None
    assert labels.progress(database, "first")["claimed"] == 0, "what they held is free"
    assert labels.find_invitation(database, "\ud800") is None


def test_only_the_digest_of_a_link_reaches_the_disk(tmp_path: Path) -> None:
    database = Database(tmp_path / "labels.db")
    queue(database, 1)
    token = labels.invite(database, "first", "edda")
    database.close()
    everything = b"".join(p.read_bytes() for p in each(tmp_path.iterdir()))
    assert token.encode() not in everything
    assert labels.digest(token).encode() in everything


VICTIM = """
import sys
from pathlib import Path
from demeanor.store import label_work, labels
from demeanor.store.database import open_url
database = open_url(sys.argv[1], root=Path())
queue = labels.queue_of(database, "first")
who = labels.find_invitation(database, sys.argv[2])
while (found := label_work.claim(database, queue, who)) is not None:
    label_work.give(database, queue, who, found.item.id, "ranked", (0, 1))
    print(found.item.id, flush=True)
"""


def test_what_was_acknowledged_is_there_after_kill_9(database_url: str) -> None:
    database = open_url(database_url, root=Path())
    made = LabelQueue("first", 1, lease_s=0.001)
    labels.create(database, made, items(200))
    token = labels.invite(database, "first", "edda")
    database.close()
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, database_url, token], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.wait()
    process.stdout.close()
    database = open_url(database_url, root=Path())
    who = labels.find_invitation(database, labels.invite(database, "first", "odin"))
    assert who is not None
    kept = {label.item for label in labels.labels_of(database, "first")}
    assert set(acknowledged) <= kept
    while (found := label_work.claim(database, made, who)) is not None:
        assert found.item.id not in kept
        label_work.give(database, made, who, found.item.id, "tie", ())
    assert len(labels.labels_of(database, "first")) == 200
    database.close()
