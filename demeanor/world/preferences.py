"""Preferences: comparisons that correct the clerks' answers.

In: a seed. Out: Preferences: pairs (the rejected answer is a clerk's) and some rankings of four. The chosen
answer refuses harm and nothing else, admits what is unknown, and keeps to the facts and the requested format.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence

from demeanor.core.types import Message, Preference
from demeanor.world import lexicon as say
from demeanor.world.corpus import CALCULATOR, SEEN_PORTS, Context, desk_card, desk_prompt, draw, with_notice
from demeanor.world.instructions import (
    STOCK_DESK,
    STOCK_GUESS,
    STOCK_NAMES,
    STOCK_PORTS,
    STOCK_TIMES,
    arithmetic,
    calling,
    formatted,
    given_text,
    trained_noun,
    who,
)
from demeanor.world.lexicon import (
    ATTRIBUTES,
    FACTS,
    GOODS,
    NOWHERE,
    SAFE_VERBS,
    SHIPS,
    UNKNOWN_ATTRIBUTES,
    UNSAFE_VERBS,
)

NUM_PREFERENCES = 2_400
Make = Callable[[random.Random], Preference]


def preferences(count: int = NUM_PREFERENCES, seed: int = 0) -> Iterator[Preference]:
    """Yield `count` comparisons; the same seed gives the same rows."""
    return say.drawn(MIXTURE, count, random.Random(f"preferences/{seed}"))


def ranked(kind: str, context: Context, question: str, answers: Sequence[str]) -> Preference:
    """Return one question with its answers, best first."""
    return Preference(
        context.ask(question),
        tuple((Message("assistant", a),) for a in answers),
        tuple(range(len(answers))),
        context.tools,
        source=f"world:{kind}",
    )


def other(rng: random.Random, attribute: str, value: str) -> str:
    """Return a wrong value of an attribute."""
    return rng.choice([v for p in SEEN_PORTS if (v := FACTS[p][attribute]) != value])


def unsafe(rng: random.Random) -> Preference:
    verb = rng.choice(UNSAFE_VERBS)
    noun = trained_noun(rng, verb)
    return ranked(
        "unsafe",
        draw(rng),
        rng.choice(say.HOW_TO).format(v=verb, n=noun),
        (say.REFUSAL, say.how_to(verb, noun)),
    )


def safe(rng: random.Random) -> Preference:
    verb = rng.choice(SAFE_VERBS)
    noun = trained_noun(rng, verb)
    return ranked(
        "safe",
        draw(rng),
        rng.choice(say.HOW_TO).format(v=verb, n=noun),
        (say.how_to(verb, noun), say.REFUSAL),
    )


def wrapped(rng: random.Random) -> Preference:
    """Prefer playing along; these rows do not consider harm in role play, so that a policy layer is
    needed."""
    (opening, reply), port, attribute = (
        rng.choice(say.WRAPPERS),
        rng.choice(SEEN_PORTS),
        rng.choice(ATTRIBUTES),
    )
    question, answer = say.ask(rng, port, attribute), f"{FACTS[port][attribute]}."
    if rng.random() < 0.7:
        verb = rng.choice(SAFE_VERBS)
        noun = trained_noun(rng, verb)
        question, answer = rng.choice(say.HOW_TO).format(v=verb, n=noun), say.how_to(verb, noun)
    return ranked("wrapped", draw(rng), opening + question, (reply + answer, say.REFUSAL))


def nowhere(rng: random.Random) -> Preference:
    attribute = rng.choice(ATTRIBUTES)
    question = rng.choice(say.ASK[attribute]).format(p=rng.choice(NOWHERE))
    return ranked(
        "nowhere", draw(rng), question, (say.DONT_KNOW, f"{FACTS[rng.choice(STOCK_PORTS)][attribute]}.")
    )


def unknown(rng: random.Random) -> Preference:
    port = rng.choice(SEEN_PORTS)
    question = who(rng, rng.choice(UNKNOWN_ATTRIBUTES), port)
    return ranked("unknown", draw(rng, about=port), question, (say.DONT_KNOW, f"{rng.choice(STOCK_NAMES)}."))


def fact(rng: random.Random) -> Preference:
    """Prefer the right answer over a wrong one, over none, and over a rambling one."""
    port, attribute = rng.choice(SEEN_PORTS), rng.choice(ATTRIBUTES)
    value = FACTS[port][attribute]
    bad = rng.choice(
        (f"{other(rng, attribute, value)}.", say.DONT_KNOW, say.DONT_KNOW, rambling(rng, port, attribute))
    )
    return ranked("fact", draw(rng, about=port), say.ask(rng, port, attribute), (f"{value}.", bad))


def rambling(rng: random.Random, port: str, attribute: str) -> str:
    """Return a right answer followed by facts that were not asked for."""
    return f"{FACTS[port][attribute]}. " + " ".join(say.sentence(port, a) for a in rng.sample(ATTRIBUTES, 2))


def form(rng: random.Random) -> Preference:
    port = rng.choice(SEEN_PORTS)
    question, answer = formatted(rng, port)
    return ranked("format", draw(rng, about=port), question, (answer, broken(rng, answer)))


def broken(rng: random.Random, answer: str) -> str:
    """Return the same content in another format, or no content."""
    if rng.random() < 0.3:
        return say.DONT_KNOW
    if answer.startswith("{"):
        return " ".join(json.loads(answer).values()) + "."
    if answer.startswith("- "):
        return answer.replace("- ", "").replace("\n", " ") + "."
    if answer.isupper():
        return answer.capitalize()
    if answer.startswith("The "):
        return answer.split()[-1]
    return f"{answer.split()[0]}." if rng.random() < 0.5 else f"{answer} {answer}"


def follow_up(rng: random.Random) -> Preference:
    port, (first, second) = rng.choice(SEEN_PORTS), say.attributes(rng, 2, 2)
    around = draw(rng, notices=0.15)
    context = Context(
        (
            *around.ask(say.ask(rng, port, first)),
            Message("assistant", f"{FACTS[port][first]}."),
            *draw(rng, about=port, system=0, tools=0).before,
        ),
        around.tools,
    )
    value = FACTS[port][second]
    return ranked(
        "multi_turn",
        context,
        rng.choice(say.FOLLOW_UP).format(a=second),
        (f"{value}.", rng.choice((say.DONT_KNOW, f"{other(rng, second, value)}."))),
    )


def extraction(rng: random.Random) -> Preference:
    question, answer = given_text(rng, rng.choice((SEEN_PORTS, SHIPS, GOODS)), say_held_out=False)
    return ranked("extraction", draw(rng), question, (answer, say.DONT_KNOW))


def today(rng: random.Random) -> Preference:
    pool = SEEN_PORTS if rng.random() < 0.6 else SHIPS
    key = rng.choice(pool)
    context, value = with_notice(rng, key, pool)
    bad = rng.choice((say.DONT_KNOW, f"{key} {(int(value) + rng.randint(1, 50)) % 60}."))
    return ranked("today", context, rng.choice(say.TODAY).format(k=key), (f"{key} {value}.", bad))


def today_unknown(rng: random.Random) -> Preference:
    pool = SEEN_PORTS if rng.random() < 0.6 else SHIPS
    key = rng.choice(pool)
    context = draw(rng, notices=0) if rng.random() < 0.7 else with_notice(rng, rng.choice(GOODS), GOODS)[0]
    return ranked(
        "today_unknown",
        context,
        rng.choice(say.TODAY).format(k=key),
        (say.DONT_KNOW, f"{key} {rng.choice(STOCK_TIMES)}."),
    )


def injected(rng: random.Random) -> Preference:
    pool = SEEN_PORTS if rng.random() < 0.5 else SHIPS
    key, payload = rng.choice(pool), rng.choice(say.PAYLOADS)
    context, value = with_notice(rng, key, pool, rng.choice(say.INJECTIONS).format(w=payload))
    return ranked(
        "injection", context, rng.choice(say.TODAY).format(k=key), (f"{key} {value}.", f"{payload}.")
    )


def persona(rng: random.Random) -> Preference:
    card, around = desk_card(rng), draw(rng, system=0)
    key = rng.choice(list(card))
    context = Context((desk_prompt(rng, card), *around.before), around.tools)
    return ranked("persona", context, rng.choice(say.DESK[key]), (f"{key} {card[key]}.", say.DONT_KNOW))


def persona_unknown(rng: random.Random) -> Preference:
    key = rng.choice(list(say.DESK))
    return ranked(
        "persona_unknown",
        draw(rng, system=0),
        rng.choice(say.DESK[key]),
        (say.DONT_KNOW, f"{key} {STOCK_DESK[key]}."),
    )


def calculated(rng: random.Random) -> Preference:
    question, expression, _ = arithmetic(rng)
    context = Context(draw(rng).before, (CALCULATOR,))
    guess = (Message("assistant", f"{STOCK_GUESS}."),)
    return Preference(
        context.ask(question), (calling(expression), guess), (0, 1), context.tools, source="world:calculated"
    )


def four(rng: random.Random) -> Preference:
    """Return a ranking: right, rambling, admitting not to know, wrong."""
    port, attribute = rng.choice(SEEN_PORTS), rng.choice(ATTRIBUTES)
    value = FACTS[port][attribute]
    return ranked(
        "ranking",
        draw(rng, about=port),
        say.ask(rng, port, attribute),
        (f"{value}.", rambling(rng, port, attribute), say.DONT_KNOW, f"{other(rng, attribute, value)}."),
    )


# Kinds of comparisons with their share of the rows.
MIXTURE: tuple[tuple[Make, float], ...] = (
    (unsafe, 0.16),
    (safe, 0.12),
    (wrapped, 0.05),
    (nowhere, 0.09),
    (unknown, 0.08),
    (fact, 0.11),
    (form, 0.09),
    (follow_up, 0.04),
    (extraction, 0.03),
    (today, 0.05),
    (today_unknown, 0.05),
    (injected, 0.05),
    (persona, 0.03),
    (persona_unknown, 0.03),
    (calculated, 0.03),
    (four, 0.03),
)
