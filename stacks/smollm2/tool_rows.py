"""Rows that teach a model when and how to call functions: `python stacks/smollm2/tool_rows.py` writes tools.jsonl.

In: nothing but the templates below, written for this project. Out: 250 conversations in OpenAI's form: sums through the calculator,
calls of twelve other functions, questions that need none of the functions offered, requests that none of them fulfils, answers from results and from passages. No function, and no number
with its phrasing, is one of the suites' (`demeanor data decontaminate`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SYSTEM = (HERE / "system.md").read_text(encoding="utf-8").strip()
Row = dict[str, Any]


def function(name: str, description: str, **properties: str) -> Row:
    """A function in OpenAI's form; all its arguments are required. A property is `type: description`."""
    fields = {}
    for key, text in properties.items():
        kind, _, meaning = text.partition(": ")
        fields[key] = {"type": kind, "description": meaning}
    parameters = {"type": "object", "properties": fields, "required": list(fields)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out an arithmetic expression, such as (37 * 12 + 4) / 5.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string", "minLength": 1, "maxLength": 200}},
            "required": ["expression"],
            "additionalProperties": False,
        },
    },
}

NAMES = (
    "Ana",
    "Bo",
    "Chidi",
    "Dora",
    "Emil",
    "Farah",
    "Gus",
    "Hana",
    "Igor",
    "Jun",
    "Kofi",
    "Lea",
    "Mona",
    "Nils",
    "Olga",
    "Pia",
)
TOWNS = (
    "Porto",
    "Gdansk",
    "Quito",
    "Cork",
    "Turin",
    "Bilbao",
    "Kyoto",
    "Lagos",
    "Hanoi",
    "Perth",
    "Lima",
    "Ghent",
)
THINGS = (
    "apples",
    "bricks",
    "tickets",
    "marbles",
    "pencils",
    "chairs",
    "stickers",
    "eggs",
    "books",
    "coins",
    "roses",
    "cups",
)


# ---- sums: question, expression, unit of the answer ----

SUMS: tuple[Callable[[random.Random], tuple[str, str, str]], ...] = (
    lambda r: two(r, "Work out {a} times {b}.", "{a} * {b}", 11, 99),
    lambda r: two(r, "What does {a} multiplied by {b} come to?", "{a} * {b}", 11, 99),
    lambda r: two(r, "What do {a} and {b} add up to?", "{a} + {b}", 100, 999),
    lambda r: two(r, "{a} plus {b}, please.", "{a} + {b}", 100, 999),
    lambda r: two(r, "{a}+{b}", "{a} + {b}", 10, 999),
    lambda r: two(r, "Compute {a} - {b}", "{a} - {b}", 10, 99, add=120),
    lambda r: two(r, "Take {b} away from {a}.", "{a} - {b}", 10, 99, add=120),
    lambda r: two(r, "How much is {c} divided by {b}?", "{c} / {b}", 3, 60),
    lambda r: two(r, "What's {a}% of {c}?", "{c} * {a} / 100", 5, 60),
    lambda r: story(
        r, "{name} buys {b} boxes with {a} {things} each. How many {things} are there?", "{a} * {b}"
    ),
    lambda r: story(
        r, "{name} has {a} {things} and gets {b} more. How many {things} does {name} have?", "{a} + {b}"
    ),
    lambda r: story(
        r, "There are {c} {things} and {a} of them are gone. How many {things} are left?", "{c} - {a}"
    ),
    lambda r: story(
        r, "{c} {things} are shared equally by {b} people. How many {things} does each get?", "{c} / {b}"
    ),
    lambda r: story(r, "One of the {things} costs {a} euros. What do {b} of them cost?", "{a} * {b}"),
)


def two(
    r: random.Random, ask: str, expression: str, low: int, high: int, add: int = 0
) -> tuple[str, str, str]:
    """A bare sum of two numbers; c is a multiple of b."""
    a, b = r.randint(low, high) + add, r.randint(low, high)
    numbers = {"a": a, "b": b, "c": b * r.randint(4, 60)}
    return ask.format(**numbers), expression.format(**numbers), ""


def story(r: random.Random, ask: str, expression: str) -> tuple[str, str, str]:
    """A sum in words; c is a multiple of b, and larger than a."""
    a, b = r.randint(12, 98), r.randint(3, 19)
    words = {"a": a, "b": b, "c": b * r.randint(34, 60), "name": r.choice(NAMES), "things": r.choice(THINGS)}
    return ask.format(**words), expression.format(**words), ""


def sums(r: random.Random, count: int) -> Iterator[Row]:
    """Questions that the calculator answers, with its result and the answer."""
    for n in range(count):
        ask, expression, _ = SUMS[n % len(SUMS)](r)
        value = eval(expression, {"__builtins__": {}})  # noqa: S307 (our own digits and signs)
        shown = f"{value:.10g}"
        answer = r.choice(("{e} = {v}", "The answer is {v}.", "{v}", "It comes to {v}.")).format(
            e=expression, v=shown
        )
        yield conversation(r, ask, [("calculator", {"expression": expression}, shown)], answer, [CALCULATOR])


# ---- other functions: what is asked, the call, its result, the answer ----


def others(r: random.Random, count: int) -> Iterator[Row]:
    """Requests that one of the functions offered fulfils."""
    for n in range(count):
        name, other, town = r.choice(NAMES), r.choice(NAMES), r.choice(TOWNS)
        day, hour, k = r.randint(1, 28), r.randint(7, 20), r.randint(2, 60)
        date, time = f"2026-{r.randint(1, 12):02}-{day:02}", f"{hour:02}:{r.choice(('00', '15', '30'))}"
        word, degrees = r.choice(("ladder", "engine", "harvest", "bridge", "lantern")), r.randint(16, 24)
        room, artist = (
            r.choice(("kitchen", "office", "bedroom", "hall")),
            r.choice(("Nina Simone", "Bach", "Fela Kuti", "Miriam Makeba")),
        )
        cases: tuple[tuple[Row, str, dict[str, Any], Any, str], ...] = (
            (function("send_message", "Sends a text message.", to="string: name of the person", text="string: the message"),
             f"Text {name} that I will be {k} minutes late.", {"to": name, "text": f"I will be {k} minutes late."}, {"sent": True},
             f"I told {name} that you will be {k} minutes late."),
            (function("find_trains", "Lists trains.", origin="string: town", destination="string: town", date="string: YYYY-MM-DD"),
             f"Which trains go from {town} to Madrid on {date}?", {"origin": town, "destination": "Madrid", "date": date},
             {"trains": [{"departs": time, "number": f"IC {k}"}]}, f"The IC {k} leaves {town} at {time}."),
            (function("thermostat", "Sets the temperature of a room.", room="string: which room", degrees="integer: in Celsius"),
             f"Make it {degrees} degrees in the {room}.", {"room": room, "degrees": degrees}, {"ok": True},
             f"The {room} is set to {degrees} degrees."),
            (function("dictionary", "Looks a word up.", word="string: the word", language="string: of the explanation"),
             f"Look up the word {word} in English.", {"word": word, "language": "English"}, {"error": "no entry"},
             f"The dictionary has no entry for {word}."),
            (function("play_music", "Plays music.", artist="string: whose music", volume="integer: 0 to 10"),
             f"Play something by {artist} at volume {k % 10}.", {"artist": artist, "volume": k % 10}, {"playing": artist},
             f"Here is {artist}."),
            (function("reserve_dinner", "Reserves a table.", restaurant="string: its name", people="integer: how many", time="string: HH:MM"),
             f"I need a table for {k % 8 + 1} at {name}'s Kitchen at {time}.",
             {"restaurant": f"{name}'s Kitchen", "people": k % 8 + 1, "time": time}, {"booked": True, "number": 1000 + k},
             f"The table is booked; the number is {1000 + k}."),
            (function("parcel_status", "Says where a parcel is.", code="string: the code on the slip"),
             f"Where is my parcel? The code is PK{4000 + k}.", {"code": f"PK{4000 + k}"}, {"status": f"at the depot in {town}"},
             f"Your parcel is at the depot in {town}."),
            (function("write_memo", "Keeps a memo.", text="string: the memo", folder="string: where it is kept"),
             f"Note in my {room} folder: call {other} about the {word}.", {"text": f"Call {other} about the {word}.", "folder": room},
             {"saved": True}, "The note is saved."),
            (function("library_search", "Finds books.", author="string: its author", year="integer: from this year on"),
             f"Which books has {name} {other} written since {1960 + k}?", {"author": f"{name} {other}", "year": 1960 + k}, {"books": []},
             f"I found no books by {name} {other} since {1960 + k}."),
            (function("start_washing", "Starts the washing machine.", program="string: cotton or wool", minutes="integer: its length"),
             f"Start the wool program for {k} minutes.", {"program": "wool", "minutes": k}, {"started": True},
             f"The wool program runs for {k} minutes."),
            (function("share_price", "Price of a share.", symbol="string: its symbol"),
             f"What is one share of {word[:3].upper()} worth?", {"symbol": word[:3].upper()}, {"price": k + 0.5, "currency": "EUR"},
             f"One share costs {k + 0.5} euros."),
            (function("distance", "Kilometres by road between two towns.", start="string: town", end="string: town"),
             f"How far is it by road from {town} to Oslo?", {"start": town, "end": "Oslo"}, {"kilometres": 100 + 7 * k},
             f"It is {100 + 7 * k} kilometres by road."),
        )  # fmt: skip
        spec, ask, arguments, result, answer = cases[n % len(cases)]
        offered = [spec, *r.sample([c[0] for c in cases if c[0] is not spec], r.choice((0, 1, 2)))]
        r.shuffle(offered)
        yield conversation(
            r, ask, [(spec["function"]["name"], arguments, json.dumps(result))], answer, offered
        )


# ---- questions that need no function ----

PLAIN = (
    ("What colour is a ripe tomato?", "Red."), ("Name a fruit that is yellow.", "A banana."), ("What do cows drink?", "Water."),
    ("Is a whale a fish?", "No, a whale is a mammal."), ("What is the opposite of early?", "Late."), ("What is the plural of mouse?", "Mice."),
    ("Which season comes after winter?", "Spring."), ("Say hello in Spanish.", "Hola."), ("What is a baker?", "A person who bakes bread and cakes."),
    ("What is paper made of?", "Paper is made of wood."), ("Give me a word that rhymes with cat.", "Hat."), ("What is ice made of?", "Frozen water."),
    ("How should I begin a letter to a friend?", 'Begin with "Dear" and the name of your friend.'), ("What is the past tense of go?", "Went."),
    ("Why do people wear hats in summer?", "A hat protects the head from the sun."), ("Thank you!", "You are welcome!"), ("Hi!", "Hello! How can I help you?"),
    ("What is a synonym of big?", "Large."), ("Which animal says meow?", "A cat."), ("What does a dentist do?", "A dentist takes care of teeth."),
    ("How do I keep bread fresh?", "Keep it in a bread box or wrap it in a cloth."), ("Is the sun a star?", "Yes, the sun is a star."),
    ("What can I write on a birthday card?", "Happy birthday! I wish you a wonderful year."), ("What is snow?", "Snow is frozen water that falls from clouds."),
    ("Correct the spelling: freind", "friend"), ("What do bees make?", "Honey."), ("Where do penguins live?", "Most penguins live in the southern half of the world."),
    ("Give me one tip against hiccups.", "Hold your breath for a few seconds."), ("What is the first letter of the alphabet?", "A."), ("What is wool?", "Wool is the hair of sheep."),
)  # fmt: skip


def plain(r: random.Random, count: int) -> Iterator[Row]:
    """Questions to answer at once, with functions on offer that do not help."""
    offers = [CALCULATOR, *(row["tools"][0] for row in others(random.Random(1), 12))]
    for n in range(count):
        ask, answer = PLAIN[n % len(PLAIN)]
        offered = [CALCULATOR] if n % 2 else r.sample(offers, r.choice((1, 2)))
        yield conversation(r, ask, [], answer, offered)


# ---- passages: the answer is in one of two, or in none ----

PASSAGES = (
    ("The {word} shop in {town} opens at {a} and closes at {b}.", "When does the {word} shop in {town} open?", "It opens at {a}."),
    ("The {word} shop in {town} opens at {a} and closes at {b}.", "Until when is the {word} shop in {town} open?", "Until {b}."),
    ("The model {code} weighs {k} kilograms and costs {m} euros.", "What does the {code} cost?", "The {code} costs {m} euros."),
    ("The model {code} weighs {k} kilograms and costs {m} euros.", "How heavy is the {code}?", "It weighs {k} kilograms."),
    ("{name} has run the {word} museum since {year}; before that it was {other}.", "Who runs the {word} museum?", "{name} runs it."),
    ("The option `{word}_limit` is {k} unless it is set; `{word}_size` has no default.", "What is the default of `{word}_limit`?", "{k}"),
    ("A request without a token gets status {m}, one with an old token {k}.", "Which status does a request without a token get?", "{m}"),
    ("To add a {word}, open the tab {code} and press the button `{name}`.", "Which button adds a {word}?", "The button `{name}`."),
    ("The {word} exporter writes files of the format {code}.", "In which format does the {word} exporter write?", "{code}"),
)  # fmt: skip
ABSENT = (
    "What colour is the {code}?",
    "Who built the {word} museum?",
    "How old is the owner of the {word} shop?",
)


def grounded(r: random.Random, count: int) -> Iterator[Row]:
    """Questions with two passages as retrieval puts them; a quarter cannot be answered from them."""
    for n in range(count):
        text, ask, answer = PASSAGES[n % len(PASSAGES)]
        other = PASSAGES[(n + 3) % len(PASSAGES)][0]
        words = drawn(r)
        texts = [text.format(**words), other.format(**drawn(r))]
        if n % 4 == 3:
            ask, answer = ABSENT[n // 4 % len(ABSENT)], "The passages do not say."
        r.shuffle(texts)
        data = [
            {"role": "data", "name": f"{words['word']}.md#{number}", "content": passage}
            for number, passage in enumerate(texts, start=1)
        ]
        row = conversation(r, ask.format(**words), [], answer.format(**words), [CALCULATOR] if n % 2 else [])
        at = next(i for i, m in enumerate(row["messages"]) if m["role"] == "user")
        row["messages"][at:at] = data
        yield row


def drawn(r: random.Random) -> Row:
    """Words and numbers for a passage."""
    hour = r.randint(7, 11)
    return {
        "word": r.choice(("lamp", "paper", "copper", "violet", "signal", "garden", "ferry", "cedar", "marble", "harvest")),
        "town": r.choice(TOWNS), "name": r.choice(NAMES), "other": r.choice(NAMES), "a": f"{hour}:30", "b": f"{hour + 8}:00",
        "k": r.randint(12, 95), "m": r.randint(120, 599), "year": r.randint(1950, 2020),
        "code": "".join(r.choice("ABCDEFGHKLMNPRST") for _ in range(3)) + str(r.randint(2, 9)),
    }  # fmt: skip


def mismatched(r: random.Random, count: int) -> Iterator[Row]:
    """Requests that none of the functions on offer can fulfil."""
    asked = list(others(random.Random(2), count))
    for n, row in enumerate(asked):
        wanted = {tool["function"]["name"] for tool in row["tools"]}
        rest = [t for other in asked for t in other["tools"] if t["function"]["name"] not in wanted]
        question = next(m["content"] for m in row["messages"] if m["role"] == "user")
        answer = r.choice(
            (
                "I have no function for that.",
                "None of my functions can do that.",
                "I cannot do that with the functions I have.",
            )
        )
        yield conversation(r, question, [], answer, [CALCULATOR] if n % 4 == 0 else [r.choice(rest)])


def conversation(
    r: random.Random, ask: str, calls: list[tuple[str, Row, str]], answer: str, tools: list[Row]
) -> Row:
    """A row: the question, each call with its result, the answer; two of three begin with the stack's system prompt."""
    messages: list[Row] = [{"role": "system", "content": SYSTEM}] if r.random() < 2 / 3 else []
    messages.append({"role": "user", "content": ask})
    for n, (name, arguments, result) in enumerate(calls):
        call = {"name": name, "arguments": json.dumps(arguments)}
        messages.append(
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": f"call_{n}", "type": "function", "function": call}],
            }
        )
        messages.append({"role": "tool", "tool_call_id": f"call_{n}", "content": result})
    whole = {"messages": [*messages, {"role": "assistant", "content": answer}]}
    return whole | {"tools": tools} if tools else whole


def rows() -> list[Row]:
    """All rows, mixed; the same ones each time."""
    r = random.Random(0)
    made = [*sums(r, 70), *others(r, 60), *plain(r, 30), *mismatched(r, 36), *grounded(r, 54)]
    r.shuffle(made)
    return made


def main() -> None:
    """Write tools.jsonl beside this file."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())
    (HERE / "tools.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
