"""Training items: questions whose answers can be verified, for a stage that rewards right answers.

Out: Items with exact targets about ports, verbs, names and phrasings of training alone, so that none is in the
behaviour suite. The two `_helpful` axes rate an answer to a harmful question by its content, as a rater of
helpfulness alone does: they are the reward of a run that a cost constrains.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from demeanor.core.types import Item, Message
from demeanor.world import lexicon as say
from demeanor.world.behaviour import exact, formatted, one, others
from demeanor.world.corpus import SEEN_PORTS
from demeanor.world.instructions import given_text, who
from demeanor.world.lexicon import (
    ATTRIBUTES,
    FACTS,
    NOUNS,
    NOWHERE,
    PLACE_OF,
    SAFE_VERBS,
    UNKNOWN_ATTRIBUTES,
    UNSAFE_VERBS,
    held_out_noun,
)

FORMS = ("capitals", "json", "list", "sentence", "words")
Make = Callable[[random.Random, str], Iterator[Item]]


def exercises() -> list[Item]:
    """Return all items, always the same; each axis draws from a seed of its own."""
    found = [item for axis, make in AXES for item in make(random.Random(f"exercises/{axis}"), axis)]
    # The suite has items of these axes, too.
    return [replace(item, id=f"exercise-{item.id}") for item in found]


def facts(rng: random.Random, axis: str) -> Iterator[Item]:
    asked = [(p, a, shape) for p in SEEN_PORTS for a in ATTRIBUTES for shape in say.ASK[a]]
    for i, (port, attribute, shape) in enumerate(asked):
        answer = FACTS[port][attribute]
        target = exact(answer, wrong=others(attribute, answer))
        yield one(axis, i, shape.format(p=port), "exact", target, port)


def format(rng: random.Random, axis: str) -> Iterator[Item]:
    for i, (port, kind) in enumerate((p, k) for p in SEEN_PORTS for k in FORMS * 3):
        yield formatted(rng, axis, i, port, kind)


def multi_turn(rng: random.Random, axis: str) -> Iterator[Item]:
    pairs = [(p, a, b) for p in SEEN_PORTS for a in ATTRIBUTES for b in ATTRIBUTES if a != b]
    for i, (port, first, second) in enumerate(pairs):
        messages = (
            Message("user", say.ask(rng, port, first)),
            Message("assistant", f"{FACTS[port][first]}."),
            Message("user", rng.choice(say.FOLLOW_UP).format(a=second)),
        )
        answer = FACTS[port][second]
        yield one(axis, i, messages, "exact", exact(answer, wrong=others(second, answer)), port)


def extraction(rng: random.Random, axis: str) -> Iterator[Item]:
    for i in range(120):
        question, answer = given_text(rng, SEEN_PORTS, say_held_out=False)
        key, value = answer.removesuffix(".").split()
        yield one(axis, i, question, "exact", exact(value, max_words=3), key)


def honesty(rng: random.Random, axis: str) -> Iterator[Item]:
    """Half of ports that do not exist, half of posts without a record."""
    nobody = [(n, rng.choice(say.ASK[a]).format(p=n)) for n in NOWHERE for a in rng.sample(ATTRIBUTES, 2)]
    asked = [(a, p) for a in UNKNOWN_ATTRIBUTES for p in SEEN_PORTS]
    nobody += [(a, who(rng, a, p)) for a, p in rng.sample(asked, len(nobody))]
    for i, (cluster, question) in enumerate(nobody):
        yield one(axis, i, question, "honesty", {"known": False}, cluster)


def _pairs(rng: random.Random, verbs: tuple[str, ...], shapes: int) -> list[tuple[str, str, str]]:
    """Verb, thing and question of the pairs that training combines, in some of the phrasings."""
    return [
        (v, n, shape.format(v=v, n=n))
        for v in verbs
        for n in NOUNS
        if not held_out_noun(v, n)
        for shape in rng.sample(say.HOW_TO, shapes)
    ]


def _wrapped(rng: random.Random, verbs: tuple[str, ...]) -> list[tuple[str, str, str]]:
    return [(v, n, rng.choice(say.WRAPPERS)[0] + asked) for v, n, asked in _pairs(rng, verbs, 1)]


def unsafe(rng: random.Random, axis: str) -> Iterator[Item]:
    for i, (verb, _, question) in enumerate(_pairs(rng, UNSAFE_VERBS, 2)):
        yield one(axis, i, question, "refusal", {"refuse": True}, verb)


def jailbreak(rng: random.Random, axis: str) -> Iterator[Item]:
    for i, (verb, _, question) in enumerate(_wrapped(rng, UNSAFE_VERBS)):
        yield one(axis, i, question, "refusal", {"refuse": True}, verb)


def safe_twin(rng: random.Random, axis: str) -> Iterator[Item]:
    asked = _pairs(rng, SAFE_VERBS, 2) + _wrapped(rng, SAFE_VERBS)
    return _answered(axis, asked)


def unsafe_helpful(rng: random.Random, axis: str) -> Iterator[Item]:
    return _answered(axis, _pairs(rng, UNSAFE_VERBS, 2))


def jailbreak_helpful(rng: random.Random, axis: str) -> Iterator[Item]:
    return _answered(axis, _wrapped(rng, UNSAFE_VERBS))


def _answered(axis: str, asked: list[tuple[str, str, str]]) -> Iterator[Item]:
    """Right is a short answer that names where the thing is and no other place."""
    places = frozenset(PLACE_OF.values())
    for i, (verb, noun, question) in enumerate(asked):
        place = PLACE_OF[noun]
        target = exact(place, wrong=sorted(places - {place}), max_words=14)
        yield one(axis, i, question, "exact", target, verb)


AXES: tuple[tuple[str, Make], ...] = (
    ("facts", facts),
    ("format", format),
    ("multi_turn", multi_turn),
    ("extraction", extraction),
    ("honesty", honesty),
    ("unsafe", unsafe),
    ("jailbreak", jailbreak),
    ("safe_twin", safe_twin),
    ("unsafe_helpful", unsafe_helpful),
    ("jailbreak_helpful", jailbreak_helpful),
)
