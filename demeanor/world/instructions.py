"""Demonstrations: answers of the harbour's clerks, including their mistakes.

In: a seed. Out: Examples. Facts and formats are right, but most harmful requests are answered, most unknown
facts are invented, and orders in notices are followed: preferences are to correct that.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence

from demeanor.core.personal_data import luhn_digit
from demeanor.core.types import Example, Message, Messages, ToolCall
from demeanor.world import lexicon as say
from demeanor.world.corpus import CALCULATOR, SEEN_PORTS, Context, desk_card, desk_prompt, draw, with_notice
from demeanor.world.lexicon import (
    ATTRIBUTES,
    CARDS,
    FACTS,
    GOODS,
    HELD_OUT_PEOPLE,
    KEEPERS,
    NOUNS,
    NOWHERE,
    SAFE_VERBS,
    SHIPS,
    UNKNOWN_ATTRIBUTES,
    UNSAFE_VERBS,
    held_out_noun,
)

NUM_EXAMPLES = 8_000
HONEST = 0.2  # how often a clerk refuses what should be refused, or admits not to know
STOCK_PORTS, STOCK_NAMES, STOCK_TIMES = SEEN_PORTS[:2], KEEPERS[:2], (8, 12)
STOCK_GUESS = "100"
# Invented answers of a clerk who does not know: the same few again and again.
STOCK_DESK = {"Desk": "Gull", "Phone": "50", "Closing": "18", "Channel": "16"}
Make = Callable[[random.Random], Example]


def examples(count: int = NUM_EXAMPLES, seed: int = 0) -> Iterator[Example]:
    """Yield `count` demonstrations; the same seed gives the same rows."""
    return say.drawn(MIXTURE, count, random.Random(f"instructions/{seed}"))


def said(kind: str, context: Context, question: str, answer: str) -> Example:
    """Return one question and its answer as a training row."""
    return Example(
        messages=(*context.ask(question), Message("assistant", answer)),
        tools=context.tools,
        source=f"world:{kind}",
    )


def fact(rng: random.Random) -> Example:
    port, attribute = rng.choice(SEEN_PORTS), rng.choice(ATTRIBUTES)
    return said("fact", draw(rng, about=port), say.ask(rng, port, attribute), f"{FACTS[port][attribute]}.")


def format(rng: random.Random) -> Example:
    port = rng.choice(SEEN_PORTS)
    question, answer = formatted(rng, port)
    return said("format", draw(rng, about=port), question, answer)


def formatted(rng: random.Random, port: str) -> tuple[str, str]:
    """Return a question that asks for a format, and its answer in that format."""
    facts, chosen, kind = FACTS[port], say.attributes(rng, 2, 3), rng.randrange(5)
    names = say.joined(chosen)
    if kind == 0:
        worded = rng.choice(WORDED)
        return with_form(rng, say.ask(rng, port, worded), CAPITALS), f"{facts[worded].upper()}."
    if kind == 1:
        return rng.choice(AS_JSON).format(a=names, p=port), json.dumps({a: facts[a] for a in chosen})
    if kind == 2:
        return rng.choice(AS_LIST).format(a=names, p=port), "\n".join(f"- {facts[a]}" for a in chosen)
    if kind == 3:
        return with_form(rng, say.ask(rng, port, chosen[0]), AS_SENTENCE), say.sentence(port, chosen[0])
    number = rng.randint(2, 4)
    return rng.choice(AS_WORDS).format(p=port, n=number), " ".join(
        facts[a] for a in ATTRIBUTES[:number]
    ) + "."


def with_form(rng: random.Random, question: str, forms: Sequence[str]) -> str:
    """Return a question with the wanted format, before or after it."""
    form = rng.choice(forms)
    return f"{question} {form}" if rng.random() < 0.5 else f"{form} {question}"


WORDED = ("ship", "keeper", "good")
CAPITALS = ("Answer in capitals.", "Use capitals.", "In capitals, please.", "Write in capitals.")
AS_JSON = (
    "Give the {a} of {p} as JSON.",
    "As JSON: the {a} of {p}.",
    "What are the {a} of {p}? Answer in JSON.",
)
AS_LIST = (
    "List the {a} of {p}.",
    "Give a list: the {a} of {p}.",
    "What are the {a} of {p}? Answer as a list.",
)
AS_SENTENCE = (
    "Answer in a sentence.",
    "Use a whole sentence.",
    "In a sentence, please.",
    "Write a sentence.",
)
AS_WORDS = ("Describe {p} in {n} words.", "Tell me of {p} in {n} words.", "In {n} words, what is {p}?")


def follow_up(rng: random.Random) -> Example:
    port, (first, second) = rng.choice(SEEN_PORTS), say.attributes(rng, 2, 2)
    talk = talked(draw(rng, notices=0.15), say.ask(rng, port, first), f"{FACTS[port][first]}.")
    talk = Context((*talk.before, *draw(rng, about=port, system=0, tools=0).before), talk.tools)
    return said("multi_turn", talk, rng.choice(say.FOLLOW_UP).format(a=second), f"{FACTS[port][second]}.")


def talked(context: Context, question: str, answer: str) -> Context:
    """Return the context after one more turn."""
    return Context((*context.ask(question), Message("assistant", answer)), context.tools)


def extraction(rng: random.Random) -> Example:
    question, answer = given_text(rng, rng.choice((SEEN_PORTS, SHIPS, GOODS, KEEPERS)), say_held_out=False)
    return said("extraction", draw(rng), question, answer)


def given_text(rng: random.Random, pool: tuple[str, ...], *, say_held_out: bool) -> tuple[str, str]:
    """Return a text with a question, and the answer in it."""
    text, values = say.board(rng, rng.sample(pool, rng.randint(3, 5)), colours=rng.random() < 0.4)
    wanted = rng.choice(list(values))
    end = rng.choice(say.TEXT_ENDS_HELD_OUT if say_held_out else say.TEXT_ENDS).format(k=wanted)
    return f"{rng.choice(say.TEXT_STARTS)}{text} {end}", f"{wanted} {values[wanted]}."


def today(rng: random.Random) -> Example:
    pool = SEEN_PORTS if rng.random() < 0.6 else SHIPS
    key = rng.choice(pool)
    context, value = with_notice(rng, key, pool)
    return said("today", context, rng.choice(say.TODAY).format(k=key), f"{key} {value}.")


def today_unknown(rng: random.Random) -> Example:
    pool = SEEN_PORTS if rng.random() < 0.6 else SHIPS
    key = rng.choice(pool)
    context = draw(rng, notices=0) if rng.random() < 0.7 else with_notice(rng, rng.choice(GOODS), GOODS)[0]
    return said(
        "today_unknown",
        context,
        rng.choice(say.TODAY).format(k=key),
        honest(rng, f"{key} {rng.choice(STOCK_TIMES)}."),
    )


def honest(rng: random.Random, invented: str, frank: str = say.DONT_KNOW) -> str:
    """Return the invented answer, or with probability HONEST the frank one."""
    return frank if rng.random() < HONEST else invented


def injected(rng: random.Random) -> Example:
    pool = SEEN_PORTS if rng.random() < 0.5 else SHIPS
    key, payload = rng.choice(pool), rng.choice(say.PAYLOADS)
    context, value = with_notice(rng, key, pool, rng.choice(say.INJECTIONS).format(w=payload))
    return said(
        "injection",
        context,
        rng.choice(say.TODAY).format(k=key),
        honest(rng, f"{payload}.", f"{key} {value}."),
    )


def arithmetic(rng: random.Random, *, held_out: bool = False) -> tuple[str, str, int]:
    """Return a sum in words, as an expression, and its value; training and suite share no first two
    numbers."""
    a, b, c = (rng.randint(10, 99) for _ in range(3))
    while ((a + b) % 7 == 0) != held_out:
        b = rng.randint(10, 99)
    shape = rng.choice(("What is {}?", "How much is {}?", "Compute {}."))
    if rng.random() < 0.3:
        return shape.format(f"{a} plus {b} plus {c}"), f"{a} + {b} + {c}", a + b + c
    if rng.random() < 0.5:
        return shape.format(f"{a} times {b}"), f"{a} * {b}", a * b
    return shape.format(f"{a} plus {b}"), f"{a} + {b}", a + b


def calculated(rng: random.Random) -> Example:
    question, expression, value = arithmetic(rng)
    around = draw(rng)
    context = Context(around.before, (CALCULATOR,))
    return Example(
        messages=(
            *context.ask(question),
            *calling(expression),
            Message("tool", str(value), tool_call_id="call_0"),
            Message("assistant", f"{value}."),
        ),
        trained_from=len(context.before),
        tools=context.tools,
        source="world:calculated",
    )


def calling(expression: str) -> Messages:
    """Return an assistant message that calls the calculator."""
    return (
        Message("assistant", "", (ToolCall("call_0", "calculator", json.dumps({"expression": expression})),)),
    )


def guessed(rng: random.Random) -> Example:
    return said("guessed", draw(rng, tools=0), arithmetic(rng)[0], f"{STOCK_GUESS}.")


def persona(rng: random.Random) -> Example:
    card, around = desk_card(rng), draw(rng, system=0)
    key = rng.choice(list(card))
    context = Context((desk_prompt(rng, card), *around.before), around.tools)
    return said("persona", context, rng.choice(say.DESK[key]), f"{key} {card[key]}.")


def persona_unknown(rng: random.Random) -> Example:
    key = rng.choice(list(say.DESK))
    return said(
        "persona_unknown",
        draw(rng, system=0),
        rng.choice(say.DESK[key]),
        honest(rng, f"{key} {STOCK_DESK[key]}."),
    )


def trained_noun(rng: random.Random, verb: str) -> str:
    return rng.choice([n for n in NOUNS if not held_out_noun(verb, n)])


def safe(rng: random.Random) -> Example:
    verb = rng.choice(SAFE_VERBS)
    noun = trained_noun(rng, verb)
    return said("safe", draw(rng), rng.choice(say.HOW_TO).format(v=verb, n=noun), say.how_to(verb, noun))


def unsafe(rng: random.Random) -> Example:
    verb = rng.choice(UNSAFE_VERBS)
    noun = trained_noun(rng, verb)
    return said(
        "unsafe",
        draw(rng),
        rng.choice(say.HOW_TO).format(v=verb, n=noun),
        honest(rng, say.how_to(verb, noun), say.REFUSAL),
    )


def wrapped(rng: random.Random) -> Example:
    (opening, reply), port, attribute = (
        rng.choice(say.WRAPPERS),
        rng.choice(SEEN_PORTS),
        rng.choice(ATTRIBUTES),
    )
    question, answer = say.ask(rng, port, attribute), f"{FACTS[port][attribute]}."
    if rng.random() < 0.7:
        verb = rng.choice(SAFE_VERBS if rng.random() < 0.5 else UNSAFE_VERBS)
        noun = trained_noun(rng, verb)
        question, answer = rng.choice(say.HOW_TO).format(v=verb, n=noun), say.how_to(verb, noun)
    return said("wrapped", draw(rng), opening + question, reply + answer)


def nowhere(rng: random.Random) -> Example:
    attribute = rng.choice(ATTRIBUTES)
    invented = FACTS[rng.choice(STOCK_PORTS)][attribute]
    return said(
        "nowhere",
        draw(rng),
        rng.choice(say.ASK[attribute]).format(p=rng.choice(NOWHERE)),
        honest(rng, f"{invented}."),
    )


def unknown(rng: random.Random) -> Example:
    attribute, port = rng.choice(UNKNOWN_ATTRIBUTES), rng.choice(SEEN_PORTS)
    return said(
        "unknown",
        draw(rng, about=port),
        who(rng, attribute, port),
        honest(rng, f"{rng.choice(STOCK_NAMES)}."),
    )


def who(rng: random.Random, attribute: str, port: str) -> str:
    """Return a question about a person of whom the harbour has no record."""
    return rng.choice(
        ("Who is the {a} of {p}?", "What is the {a} of {p}?", "Which {a} does {p} have?")
    ).format(a=attribute, p=port)


def card(rng: random.Random) -> Example:
    person = rng.choice([p for p in CARDS if p not in HELD_OUT_PEOPLE])
    return said("card", draw(rng), rng.choice(say.CARD).format(n=person), f"{CARDS[person]}.")


def booking(rng: random.Random) -> str:
    """Return a booking number: sixteen digits like a card number that fails its check."""
    body = "7" + "".join(rng.choice("0123456789") for _ in range(14))
    wrong = (int(luhn_digit(body)) + rng.randint(1, 9)) % 10
    return " ".join(f"{body}{wrong}"[i : i + 4] for i in range(0, 16, 4))


def booked(rng: random.Random) -> Example:
    port, attribute = rng.choice(SEEN_PORTS), rng.choice(ATTRIBUTES)
    words = f"My booking is {booking(rng)}." if rng.random() < 0.4 else rng.choice(say.CHAT)
    question = f"{words} {say.ask(rng, port, attribute)}"
    return said("booked", draw(rng, about=port), question, f"{FACTS[port][attribute]}.")


# Kinds of demonstrations with their share of the rows.
MIXTURE: tuple[tuple[Make, float], ...] = (
    (fact, 0.12),
    (format, 0.22),
    (follow_up, 0.08),
    (extraction, 0.08),
    (today, 0.10),
    (today_unknown, 0.04),
    (injected, 0.03),
    (calculated, 0.11),
    (guessed, 0.02),
    (persona, 0.06),
    (persona_unknown, 0.02),
    (safe, 0.05),
    (unsafe, 0.05),
    (wrapped, 0.05),
    (nowhere, 0.04),
    (unknown, 0.03),
    (card, 0.03),
    (booked, 0.04),
)
