"""Labels of a queue as rows to train on: TRL's columns, with what made each answer and who labelled it.

In: items and their labels. Out: one row an item (what its labellers say together) or one a label, and why other items have none. A
ranking of K answers stays one row: `completions` with `ranks`, one element of a reward model's step.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from demeanor.core.candidates import PreferenceCandidate
from demeanor.store import labels as stored
from demeanor.store.database import Database
from demeanor.store.labels import GivenLabel, LabelItem, labeller_hash


@dataclass
class LabelRows:
    """Rows, and how many items (or labels) gave none, by reason."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


def export(database: Database, queue: str, *, each: bool = False) -> LabelRows:
    """The rows of a queue; with `each` one row for every label instead of one for every item. Gold checks give none."""
    given: dict[str, list[GivenLabel]] = {}
    for label in stored.labels_of(database, queue):
        given.setdefault(label.item, []).append(label)
    found = LabelRows()
    for item in stored.items_of(database, queue):
        if item.gold is not None:
            continue
        own = [x for x in given.get(item.id, ()) if x.choice != "skipped" and x.role != "judge"]
        for chosen in ([label] for label in own) if each else [own]:
            ranks = consensus(chosen)
            if isinstance(ranks, str):
                found.dropped[ranks] += 1
            else:
                found.rows.append(row(queue, item, chosen, ranks))
    return found


def consensus(labels: Sequence[GivenLabel]) -> tuple[int, ...] | str:
    """The ranks that the labels of an item give together, or why they give none.

    An adjudicator's label decides; else answers are ordered by their mean rank, and equal means tie.
    """
    deciding = [label for label in labels if label.role == "adjudicator"] or list(labels)
    if not deciding:
        return "no label"
    bad = sum(label.choice == "all_bad" for label in deciding)
    if 2 * bad >= len(deciding):
        return "all answers are bad"
    ranked = [label for label in deciding if label.choice != "all_bad"]
    sums = [sum(label.ranks[n] for label in ranked) for n in range(len(ranked[0].ranks))]
    if len(set(sums)) == 1:
        return "tie" if all(label.choice == "tie" for label in ranked) else "labellers disagree"
    order = sorted(set(sums))
    return tuple(order.index(total) for total in sums)


def row(queue: str, item: LabelItem, labels: Sequence[GivenLabel], ranks: tuple[int, ...]) -> dict[str, Any]:
    """One preference row with its provenance."""
    texts = [answer.text for answer in item.answers]
    if len(texts) == 2 and 1 in ranks:
        best = ranks.index(0)
        answers: dict[str, Any] = {"chosen": texts[best], "rejected": texts[1 - best]}
    else:
        answers = {"completions": texts, "ranks": list(ranks)}
    best_answers = {n for n, rank in enumerate(ranks) if rank == 0}
    people = [label for label in labels if label.role != "adjudicator"]
    agreeing = sum(bool(best_answers & {n for n, r in enumerate(x.ranks) if r == 0}) for x in people)
    return {
        "prompt": list(item.prompt),
        **answers,
        "source": f"label:{queue}/{item.id}",
        "provenance": {
            "kind": "label",
            "queue": queue,
            "item": item.id,
            "ranks": list(ranks),
            "labels": len(people),
            "agreeing": agreeing,
            "adjudicated": any(label.role == "adjudicator" for label in labels),
            "labellers": [labeller_hash(queue, label.labeller) for label in labels],
            "arm": item.arm,
            "answers": [
                {
                    "model": answer.model,
                    "stack_key": answer.stack_key,
                    "seed": answer.seed,
                    "turn_id": answer.turn_id,
                    "logprob": math.fsum(answer.logprobs) if answer.logprobs else None,
                    "tokens": len(answer.logprobs),
                }
                for answer in item.answers
            ],
        },
    }


def sheet(items: Sequence[LabelItem], labels: Sequence[GivenLabel], queue: str) -> Iterator[dict[str, Any]]:
    """Every label as it was given, labellers by their hash: what another program measures agreement from."""
    gold = {item.id for item in items if item.gold is not None}
    for label in labels:
        yield {
            "item": label.item,
            "labeller": labeller_hash(queue, label.labeller),
            "role": label.role,
            "gold": label.item in gold,
            "choice": label.choice,
            "ranks": list(label.ranks),
            "shown": list(label.shown),
            "reason": label.reason,
            "ms": label.ms,
            "created": label.created,
            "revisions": label.revisions,
        }


def candidates(database: Database, queue: str) -> Iterator[PreferenceCandidate]:
    """Every item of a queue as a candidate of a preference set: what people say of it, or where they say nothing, a judge."""
    given: dict[str, list[GivenLabel]] = {}
    for label in stored.labels_of(database, queue):
        given.setdefault(label.item, []).append(label)
    for item in stored.items_of(database, queue):
        if item.gold is not None:
            continue
        own = [label for label in given.get(item.id, ()) if label.choice != "skipped"]
        people = [label for label in own if label.role != "judge"]
        judges = [label for label in own if label.role == "judge"]
        chosen = people or judges
        ranks = consensus(chosen)
        why, said = (ranks, (0,) * len(item.answers)) if isinstance(ranks, str) else ("", ranks)
        about = row(queue, item, chosen, said)["provenance"] if not why else {}
        yield PreferenceCandidate(
            "label" if people or not judges else "judge",
            item.prompt,
            tuple(answer.text for answer in item.answers),
            said,
            f"label:{queue}/{item.id}",
            why,
            tuple(answer.turn_id for answer in item.answers if answer.turn_id),
            (),
            tuple(answer.model for answer in item.answers),
            tuple(answer.stack_key for answer in item.answers),
            about,
        )
