"""What users said of recorded answers, as candidates of a preference set: corrections, thumbs, votes between two answers.

In: a database of turns. Out: `PreferenceCandidate`s. Routing comes first: a complaint counts as a lesson for the weights only if it
was routed to them, and every other one says which layer it belongs to.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, Literal

from demeanor.core.candidates import PreferenceCandidate
from demeanor.core.types import message_json
from demeanor.store.database import Database, Stored

Unrouted = Literal["drop", "keep"]
WEIGHTS = "weights"
MAX_PAIRS = 4
"""Pairs of one prompt from thumbs: each good answer against each bad one, at most so many."""


def candidates(database: Database, *, unrouted: Unrouted = "drop") -> Iterator[PreferenceCandidate]:
    """Yield everything that users said of recorded turns. `unrouted`: what becomes of complaints that nobody routed."""
    routes = _routes(database)
    turns: dict[str, Stored] = {}

    def turn(turn_id: str) -> Stored | None:
        if turn_id not in turns:
            stored = database.turn(turn_id)
            if stored is None:
                return None
            turns[turn_id] = stored
        return turns[turn_id]

    ratings: dict[str, list[float]] = defaultdict(list)
    for given in database.feedback():
        stored = turn(given.turn_id)
        if stored is None:
            continue
        ratings[given.turn_id].append(given.value)
        if given.corrected:
            yield _correction(stored, given.corrected, given.user, _why_not(stored, routes, unrouted))
    yield from _thumbs(turns, ratings, routes, unrouted)
    yield from _votes(database, turn)


def _routes(database: Database) -> dict[str, str]:
    """The layer that each complaint was routed to, by turn id."""
    found = database.rows(
        "SELECT t.id, r.label FROM routed_complaints r JOIN turns t ON t.row = r.turn ORDER BY r.created"
    )
    return {row["id"]: row["label"] for row in found}


def _why_not(stored: Stored, routes: Mapping[str, str], unrouted: Unrouted) -> str:
    """Why a complaint about this turn is no lesson for the weights; empty if it is one."""
    if stored.finish_reason is None:
        return "the answer broke off"
    if (refusal := stored.completion.refusal) is not None:
        return f"refused by the layer {refusal.by}"
    route = routes.get(stored.turn.id)
    if route is None:
        return "" if unrouted == "keep" else "complaint not routed to a layer yet"
    return "" if route == WEIGHTS else f"complaint routed to: {route}"


def _correction(stored: Stored, corrected: str, user: str, why: str) -> PreferenceCandidate:
    return PreferenceCandidate(
        "correction",
        _prompt(stored),
        (corrected, stored.completion.text),
        (0, 1),
        f"feedback:{stored.turn.id}",
        why,
        (stored.turn.id,),
        tuple(dict.fromkeys((stored.turn.user, user))),
        ("user", stored.turn.variant),
        ("", stored.turn.stack_key),
        {"seed": stored.turn.decoding.seed},
    )


def _thumbs(
    turns: Mapping[str, Stored],
    ratings: Mapping[str, list[float]],
    routes: Mapping[str, str],
    unrouted: Unrouted,
) -> Iterator[PreferenceCandidate]:
    """Answers to one prompt with a thumb up against those with a thumb down; a thumb alone is no comparison."""
    by_prompt: dict[str, tuple[list[Stored], list[Stored]]] = {}
    for turn_id, values in ratings.items():
        mean = sum(values) / len(values)
        stored = turns[turn_id]
        if mean and stored.completion.text:
            sides = by_prompt.setdefault(json.dumps(_prompt(stored), sort_keys=True), ([], []))
            sides[mean < 0].append(stored)
    for good, bad in by_prompt.values():
        if not good or not bad:
            for stored in good + bad:
                side = "good" if good else "bad"
                yield _alone(stored, f"a thumb alone ({side}): no other answer to this prompt was rated")
        for better, worse in list(product(good, bad))[:MAX_PAIRS]:
            why = _why_not(worse, routes, unrouted)
            yield _pair("thumbs", better, worse, f"thumbs:{better.turn.id}/{worse.turn.id}", why)


def _alone(stored: Stored, why: str) -> PreferenceCandidate:
    return PreferenceCandidate(
        "thumbs",
        _prompt(stored),
        (stored.completion.text,),
        (0,),
        f"thumbs:{stored.turn.id}",
        why,
        (stored.turn.id,),
    )


def _votes(database: Database, turn: Callable[[str], Stored | None]) -> Iterator[PreferenceCandidate]:
    """Votes between two answers that stood side by side."""
    found = database.rows(
        "SELECT c.id, c.verdict, c.blind, c.user, a.id AS first_id, b.id AS second_id FROM comparisons c"
        " JOIN turns a ON a.row = c.first JOIN turns b ON b.row = c.second ORDER BY c.created, c.id"
    )
    for row in found:
        first, second = turn(row["first_id"]), turn(row["second_id"])
        if first is None or second is None:
            continue
        why = ""
        if _prompt(first) != _prompt(second):
            why = "the two answers are to different prompts"
        elif any(x.completion.refusal is not None for x in (first, second)):
            why = "one of the answers was refused by a layer"
        elif row["verdict"] in ("tie", "both_bad"):
            why = "tie" if row["verdict"] == "tie" else "both answers are bad"
        better, worse = (second, first) if row["verdict"] == "second" else (first, second)
        made = _pair("comparison", better, worse, f"comparison:{row['id']}", why)
        yield _with(made, users=(*made.users, row["user"]), blind=bool(row["blind"]))


def _with(made: PreferenceCandidate, *, users: tuple[str, ...], blind: bool) -> PreferenceCandidate:
    return replace(made, users=tuple(dict.fromkeys(users)), provenance={**made.provenance, "blind": blind})


def _pair(
    kind: Literal["thumbs", "comparison"], better: Stored, worse: Stored, source: str, why: str
) -> PreferenceCandidate:
    return PreferenceCandidate(
        kind,
        _prompt(better),
        (better.completion.text, worse.completion.text),
        (0, 1),
        source,
        why,
        (better.turn.id, worse.turn.id),
        tuple(dict.fromkeys((better.turn.user, worse.turn.user))),
        (better.turn.variant, worse.turn.variant),
        (better.turn.stack_key, worse.turn.stack_key),
        {"seeds": [better.turn.decoding.seed, worse.turn.decoding.seed]},
    )


def _prompt(stored: Stored) -> list[dict[str, Any]]:
    """The conversation as the user sent it; what layers added is not part of it."""
    return [message_json(message) for message in stored.turn.messages]
