"""Items with verifiable constraints in IFEval's manner: topics x kinds of constraint, for training and held out.

In: the topics and phrasings below. Out: train.jsonl and held_out.jsonl beside this file. Held out are other topics in other words, and five
kinds that are not trained at all (axis `unseen_kind`). An answer must also have a few words and speak of its topic, which no prompt says: so
a reward cannot be earned by an answer to nothing. `python stacks/smollm2/items.py` writes both files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SEED = 13
LEAST_WORDS = 6  # of any answer


class Topic(NamedTuple):
    """A request, and words of which an answer to it has one."""

    asked: str
    words: tuple[str, ...]


class Kind(NamedTuple):
    """A kind of constraint: its settings for a topic, what must hold of the answer, and how it is asked."""

    settings: Callable[[random.Random, Topic], dict[str, Any]]
    checks: Callable[[dict[str, Any]], list[dict[str, Any]]]
    trained: tuple[str, ...]
    held_out: tuple[str, ...]


def topics(text: str) -> list[Topic]:
    """Read lines of `request | word, word`."""
    lines = (line.split("|") for line in text.strip().splitlines())
    return [Topic(asked.strip(), tuple(w.strip() for w in words.split(","))) for asked, words in lines]


TRAINED = topics("""
Describe a winter morning. | snow, cold, frost, winter, ice, morning
Explain what a volcano is. | volcano, lava, magma, erupt, eruption
Give me advice for a job interview. | interview, job, employer, company
Tell me about dolphins. | dolphin, dolphins, ocean, sea
What is a good breakfast? | breakfast, eggs, oatmeal, fruit, toast
Why do leaves fall in autumn? | leaves, tree, trees, autumn, fall
How do bees make honey? | bees, bee, honey, nectar
Describe the city of Paris. | paris, city, eiffel, france
How can I sleep better at night? | sleep, bed, night, bedroom
What does a teacher do? | teacher, teachers, students, teach, teaching
Explain what rain is. | rain, water, clouds, cloud
Tell me about the planet Mars. | mars, planet, red
Why is exercise good for us? | exercise, health, body, healthy
Describe a busy market. | market, people, stalls, vendors
How do I take care of a cat? | cat, cats, food, litter
What is a library for? | library, libraries, books
Give me a tip for saving money. | money, save, saving, budget
Tell me about elephants. | elephant, elephants, trunk, animals
How does a bicycle work? | bicycle, wheels, pedals, bike
What makes a good friend? | friend, friends, friendship, trust
Explain what a democracy is. | democracy, people, vote, government
Describe your ideal holiday. | holiday, vacation, beach, travel, trip
How do I make a cup of tea? | tea, water, cup
Why do people read books? | books, read, reading, book
Tell me about the Amazon rainforest. | amazon, rainforest, forest, trees
What is a rainbow? | rainbow, light, colors, colours, sun
How can I learn a new language? | language, learn, practice, words
Describe a quiet beach. | beach, sand, sea, waves, ocean
Why should we plant trees? | trees, tree, air, environment
What does a doctor do? | doctor, doctors, patients, health, medical
Give me advice for my first day at school. | school, teacher, friends, class, day
Tell me about penguins. | penguin, penguins, birds, antarctica
How do airplanes fly? | airplane, airplanes, wings, lift, air, plane
Explain what a computer is. | computer, data, machine, device
What is a healthy lunch? | lunch, salad, vegetables, healthy
Describe a forest at night. | forest, trees, night, moon, dark
Why do we need water? | water, body, drink
How can I be more patient? | patient, patience, calm, breathe
Tell me about the moon. | moon, earth, lunar
What is a good gift for a mother? | gift, mother, mom, flowers
Explain how a candle burns. | candle, wax, wick, flame
Describe an old house. | house, old, rooms, walls, door
How do I write a good letter? | letter, write, writing
Why do birds sing? | birds, bird, sing, song, songs
Tell me about chocolate. | chocolate, cocoa, sweet
What is the job of a firefighter? | firefighter, firefighters, fire, fires
How can I keep my room tidy? | room, tidy, clean
Describe a small village. | village, houses, people
Explain what money is. | money, value, goods, currency
What should I pack for a trip? | pack, clothes, trip, bag
""")
HELD_OUT = topics("""
Describe a summer evening. | summer, evening, sun, warm, sunset
Explain what an earthquake is. | earthquake, earthquakes, ground, plates, earth
Give me advice for a first date. | date, person, conversation, yourself
Tell me about wolves. | wolf, wolves, pack, animals
What is a good dinner for two? | dinner, meal, chicken, pasta, salad, steak
Why is the sea salty? | sea, salt, salty, ocean, water
How do spiders catch their food? | spider, spiders, web, webs, prey
Describe the city of Rome. | rome, city, roman, italy
How can I wake up early? | wake, early, alarm, morning, sleep
What does a farmer do? | farmer, farmers, crops, animals, farm
Explain what snow is. | snow, ice, water, snowflakes
Tell me about the planet Saturn. | saturn, planet, rings
Why is laughter good for us? | laughter, laugh, stress, body, health
Describe a crowded train station. | train, trains, station, people
How do I take care of a dog? | dog, dogs, food, walk
What is a museum for? | museum, museums, art, history
Give me a tip for a better memory. | memory, remember, brain, memories
Tell me about whales. | whale, whales, ocean, sea
How does a refrigerator work? | refrigerator, cold, heat, cool, refrigerant
What makes a good leader? | leader, leaders, leadership, team
Explain what a constitution is. | constitution, laws, law, government, rights
Describe a perfect Sunday. | sunday, day, morning, family
How do I bake bread? | bread, dough, flour, bake, oven
Why do people listen to music? | music, listen, song, songs
Tell me about the Sahara desert. | sahara, desert, sand, africa
What is thunder? | thunder, lightning, sound, air
How can I make new friends? | friends, people, friend, meet
Describe a lake in the mountains. | lake, mountains, mountain, water
Why should we recycle? | recycle, recycling, waste, environment
What does a nurse do? | nurse, nurses, patients, care
""")


def number(low: int, high: int, step: int = 1) -> Callable[[random.Random, Topic], dict[str, Any]]:
    """A number drawn from a range, as setting n."""
    return lambda draw, topic: {"n": draw.randrange(low, high + 1, step)}


def one_of(*values: str) -> Callable[[random.Random, Topic], dict[str, Any]]:
    """A text drawn from a list, as setting x."""
    return lambda draw, topic: {"x": draw.choice(values)}


def nothing(draw: random.Random, topic: Topic) -> dict[str, Any]:
    return {}


WORDS = ("always", "because", "simple", "important", "everyone", "together", "beautiful", "remember")
ENDS = ("That is all.", "I hope this helps.", "Thank you for asking.", "Have a nice day.")
HELD_ENDS = ("Let me know what you think.", "And that is the truth.", "Good luck to you.")
OMITTED = ("the", "and", "is", "can", "to")
STARTS = ("Certainly", "In short", "My answer", "Well")

KINDS: dict[str, Kind] = {
    "no_comma": Kind(
        nothing,
        lambda k: [{"kind": "avoids_characters", "characters": ","}, {"kind": "word_count", "low": 15}],
        (
            "Do not use any commas. Write at least 15 words.",
            "Write 15 words or more, without a single comma.",
            "Use no commas, and at least 15 words.",
        ),
        (
            "Refrain from the use of commas, and write 15 words at the least.",
            "There must be no comma in your reply of 15 or more words.",
        ),
    ),
    "at_most": Kind(
        number(12, 30, 3),
        lambda k: [{"kind": "word_count", "high": k["n"]}],
        (
            "Use at most {n} words.",
            "Answer with no more than {n} words.",
            "Keep your answer to {n} words or fewer.",
        ),
        ("Stay within {n} words.", "Your reply must not be longer than {n} words."),
    ),
    "at_least": Kind(
        number(25, 45, 10),
        lambda k: [{"kind": "word_count", "low": k["n"]}],
        (
            "Use at least {n} words.",
            "Write no fewer than {n} words.",
            "Your answer must have {n} words or more.",
        ),
        ("Make it {n} words or longer.", "Your reply should contain at least {n} words."),
    ),
    "sentences": Kind(
        number(1, 3),
        lambda k: [{"kind": "sentence_count", "low": k["n"], "high": k["n"]}],
        (
            "Answer in exactly {n} sentence(s).",
            "Write exactly {n} sentence(s), not more.",
            "The answer must have {n} sentence(s).",
        ),
        ("Reply with {n} sentence(s), no more and no fewer.", "Use precisely {n} sentence(s)."),
    ),
    "end": Kind(
        one_of(*ENDS),
        lambda k: [{"kind": "ends", "any": [k["x"]]}],
        (
            'End your answer with the exact phrase "{x}"',
            'The last words of your answer must be: "{x}"',
            'Finish with this exact sentence: "{x}"',
        ),
        (
            'Close your reply with exactly these words: "{x}" Nothing may follow them.',
            'Your reply must end with "{x}"',
        ),
    ),
    "keyword": Kind(
        one_of(*WORDS),
        lambda k: [{"kind": "says", "words": [k["x"]]}],
        (
            'Include the word "{x}" in your answer.',
            'Your answer must contain the word "{x}".',
            'Use the word "{x}" at least once.',
        ),
        ('Make sure that the word "{x}" appears in your reply.', 'Work the keyword "{x}" into your reply.'),
    ),
    "start": Kind(
        one_of(*STARTS),
        lambda k: [{"kind": "starts", "any": [k["x"]]}],
        (
            'Begin your answer with "{x}".',
            'The first words of your answer must be "{x}".',
            'Start with "{x}".',
        ),
        ('Your reply has to open with "{x}".', 'Let your reply start with the words "{x}".'),
    ),
    "omit": Kind(
        one_of(*OMITTED),
        lambda k: [{"kind": "omits", "words": [k["x"]]}, {"kind": "word_count", "low": 10}],
        (
            'Do not use the word "{x}". Write at least 10 words.',
            'Avoid the word "{x}" in your answer of 10 words or more.',
            'Write 10 words or more without the word "{x}".',
        ),
        (
            'The word "{x}" must not appear in your reply, which has at least 10 words.',
            'Leave out the word "{x}", and write no fewer than 10 words.',
        ),
    ),
    "one_line": Kind(
        nothing,
        lambda k: [{"kind": "one_line"}, {"kind": "word_count", "low": 12}],
        (
            "Answer in a single paragraph of at least 12 words, without a line break.",
            "Write one paragraph only, with 12 words or more.",
            "Use no lists and no line breaks, and at least 12 words.",
        ),
        (
            "Your reply of 12 or more words must stand on one line.",
            "Put all of your reply into one single paragraph of at least 12 words.",
        ),
    ),
}
UNSEEN: dict[str, Kind] = {
    "lowercase": Kind(
        nothing,
        lambda k: [{"kind": "case", "case": "lower"}],
        (),
        ("Do not use any capital letters in your reply.", "Please reply in all lower case."),
    ),
    "two_words": Kind(
        lambda draw, topic: dict(zip(("x", "y"), draw.sample(WORDS, 2))),
        lambda k: [{"kind": "says", "words": [k["x"], k["y"]]}],
        (),
        (
            'Use both the word "{x}" and the word "{y}" in your reply.',
            'Your reply must have the words "{x}" and "{y}" in it.',
        ),
    ),
    "numbered": Kind(
        number(2, 4),
        lambda k: [{"kind": "list", "style": "numbers", "low": k["n"], "high": k["n"]}],
        (),
        (
            "Reply with a numbered list of exactly {n} items.",
            "Write exactly {n} numbered points (1., 2., ...).",
        ),
    ),
    "question": Kind(
        nothing,
        lambda k: [{"kind": "question"}],
        (),
        ("The last sentence of your reply must be a question.", "End your reply with a question mark."),
    ),
    "bold": Kind(
        number(1, 2),
        lambda k: [{"kind": "bold", "low": k["n"]}],
        (),
        (
            "Put at least {n} word(s) in bold with markdown, like **this**.",
            "Highlight {n} or more word(s) as **bold** text.",
        ),
    ),
}


def item(topic: Topic, name: str, kind: Kind, draw: random.Random, trained: bool) -> dict[str, Any]:
    """One item: the request and its constraint in one of the kind's phrasings."""
    settings = kind.settings(draw, topic)
    if name == "end" and not trained:
        settings = {"x": draw.choice(HELD_ENDS)}
    asked = draw.choice(kind.trained if trained else kind.held_out).format(**settings)
    asked = asked.replace("(s)", "" if settings.get("n") == 1 else "s")
    text = (
        f"{asked} {topic.asked}"
        if draw.random() < 0.25 and not asked.endswith('"')
        else f"{topic.asked} {asked}"
    )
    return {"messages": [{"role": "user", "content": text}], "checks": kind.checks(settings), "kind": name}


def HONEST(topic: Topic) -> list[dict[str, Any]]:
    return [
        {"kind": "word_count", "low": LEAST_WORDS},
        {"kind": "says_any", "words": list(topic.words)},
    ]


def line(found: dict[str, Any], id_: str, axis: str, topic: Topic, honest: bool = True) -> str:
    """An item as a line of a suite; `honest`: it also asks for a few words and a word of the topic."""
    checks = found["checks"]
    if honest:
        counted = {k: v for c in checks if c["kind"] == "word_count" for k, v in c.items()}
        others = [c for c in checks if c["kind"] != "word_count"]
        few, about = HONEST(topic)
        checks = [*others, {**few, **counted}, about]
    row = {
        "id": id_,
        "messages": found["messages"],
        "scorer": "checks",
        "target": {"checks": checks, "mode": "strict"},
        "axis": axis,
        "cluster": topic.asked,
        "tags": [f"kind:{found['kind']}"],
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def trained_lines() -> list[str]:
    """Every trained topic with every trained kind."""
    draw = random.Random(SEED)
    return [
        line(item(topic, name, kind, draw, True), f"train-{t:02}-{name}", "trained", topic)
        for t, topic in enumerate(TRAINED)
        for name, kind in KINDS.items()
    ]


def held_out_lines(seen: int = 5, unseen: int = 3) -> list[str]:
    """Each held-out topic with some trained kinds and some that are not trained, in turn; each item also without the hidden checks."""
    draw, lines = random.Random(SEED + 1), []
    for t, topic in enumerate(HELD_OUT):
        for axis, kinds, count in (("seen_kind", KINDS, seen), ("unseen_kind", UNSEEN, unseen)):
            names = list(kinds)
            for i in range(count):
                name = names[(t * count + i) % len(names)]
                found = item(topic, name, kinds[name], draw, False)
                for honest, suffix in ((True, ""), (False, "_alone")):
                    lines.append(line(found, f"held-{t:02}-{name}{suffix}", axis + suffix, topic, honest))
    return lines


if __name__ == "__main__":
    here = Path(__file__).parent
    for name, lines in (("train.jsonl", trained_lines()), ("held_out.jsonl", held_out_lines())):
        (here / name).write_text("".join(lines), encoding="utf-8")
        print(f"{here / name}: {len(lines)} items")
