"""Sixty planted complaints, ten of each layer, are routed to the layer that was broken; what cannot be told is said.

The embedded world of tests/evaluation/clerk.py: a scripted model behind the real template, layers and tools, with one part broken.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from demeanor.core.intervals import wilson
from demeanor.core.types import (
    Completion,
    Decoding,
    Item,
    Message,
    Passage,
    RatedTurn,
    Refusal,
    Turn,
    complete,
)
from demeanor.evaluation.diagnosis import complaints
from demeanor.evaluation.diagnosis.analysis import InterventionInfo
from demeanor.evaluation.diagnosis.complaints import Complaint, RoutedComplaint, Tried, alike, decide, right
from demeanor.evaluation.experiment import suite
from demeanor.evaluation.items import wrong_target
from demeanor.evaluation.scorers import score_item
from demeanor.stack.stack import Stack, decoding_of
from demeanor.text import tokenizer as tokenizers
from demeanor.text.tokenizer import Tokenizer
from demeanor.training.runs import Runs
from tests.conftest import each
from tests.evaluation import clerk, plants
from tests.evaluation.plants import HEALTHY, PLANTS, Plant

PLANTED: Mapping[str, tuple[str, ...]] = {
    "policy": ("over-strict rule",),
    "retrieval": ("stale index",),
    "prompt": ("contradictory prompt", "leaked system prompt"),
    "tools": ("tool schema drift",),
    "decoding": ("temperature 2",),
    "weights": ("quantisation damage", "shuffled preferences"),
}
EACH, LIKED = 10, 24


@pytest.fixture(scope="module")
def tokenizer(trained: tuple[Stack, Runs]) -> Tokenizer:
    stack, runs = trained
    return tokenizers.load(runs.model(stack.stage_key("sft")))


async def answered(
    respond: object, items: list[Item], decoding: Decoding
) -> dict[str, tuple[Turn, Completion]]:
    found = {}
    for n, item in enumerate(items):
        turn = Turn(
            item.messages, replace(decoding, seed=n), item.tools, id=item.id, user=f"u{n % 7}", stack_key="k"
        )
        found[item.id] = turn, await complete(respond, turn)  # type: ignore[arg-type]
    return found


def collected(
    plant: Plant, tokenizer: Tokenizer, folder: Path, most: int
) -> tuple[Stack, object, list[Complaint], list[RatedTurn]]:
    """Complaints about a planted stack: wrong there and right in the healthy one, which says what is right; and liked turns."""
    healthy = plants.stack_of(HEALTHY["as declared"], folder / "healthy")
    sound = clerk.runtime(healthy, tokenizer, folder, {})
    stack = plants.stack_of(plant, folder / "broken")
    runtime = clerk.runtime(stack, tokenizer, folder, dict(plant.faults), plants.drifted(plant.drifted))
    items = list(suite(stack))
    whole = healthy.resolve(healthy.spec.name)
    wanted = asyncio.run(answered(sound.respond(whole), items, decoding_of(healthy)))
    given = asyncio.run(answered(runtime.respond(stack), items, decoding_of(stack)))
    bad, good = [], []
    for item in items:
        turn, completion = given[item.id]
        is_right, should = (score_item(item, c).value == 1.0 for c in (completion, wanted[item.id][1]))
        if should and not is_right:
            bad.append(Complaint(turn, completion, wanted[item.id][1].text))
        elif is_right:
            good.append(RatedTurn(turn, completion, 1.0, 1.0))
    step = max(1, len(bad) // most)
    return stack, runtime, bad[::step][:most], good[:: max(1, len(good) // LIKED)][:LIKED]


def routed(name: str, tokenizer: Tokenizer, folder: Path, most: int) -> list[RoutedComplaint]:
    stack, runtime, bad, good = collected(PLANTS[name], tokenizer, folder, most)
    services = clerk.services(folder, runtime)  # type: ignore[arg-type]
    return list(complaints.run(stack, services, folder / "results", bad, good, name="x").complaints)


def test_at_least_85_of_100_planted_complaints_go_to_the_right_layer(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    found: list[tuple[str, RoutedComplaint]] = []
    for label, names in each(PLANTED.items()):
        for name in names:
            folder = tmp_path / name.replace(" ", "-")
            found += [(label, c) for c in routed(name, tokenizer, folder, EACH // len(names))]
    confusion = Counter((planted, c.label) for planted, c in found)
    correct = sum(planted == c.label for planted, c in found)
    low, high = wilson(correct, len(found))
    told = f"{correct} of {len(found)} right ({low:.3f} to {high:.3f})\n" + "\n".join(
        f"{planted:10} -> {label:12} {count}" for (planted, label), count in sorted(confusion.items())
    )
    told += "\n" + "\n".join(
        f"{p}: {c.label} {c.turn} {c.why} {dict(c.shares)}" for p, c in found if p != c.label
    )
    print(told)
    assert len(found) == 60, told
    assert correct >= 0.85 * len(found), told


def asked(
    text: str = "When to Corkel?",
    *events: object,
    corrected: str | None = None,
    said: str = "At 10.",
    refusal: Refusal | None = None,
) -> Complaint:
    turn = Turn((Message("user", text),), Decoding(temperature=0), id="t", user="u")
    return Complaint(turn, Completion(said, "stop", refusal=refusal, events=tuple(events)), corrected)  # type: ignore[arg-type]


def tried(name: str, kind: str, label: str, share: float, harm: float = 0.0) -> Tried:
    return Tried(InterventionInfo(name, kind, label, ""), label, share, harm)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "changes", "label"),
    [
        (0.0, [tried("rule", "rule", "policy", 1.0), tried("off", "off", "policy", 1.0)], "policy"),
        (0.0, [tried("prompt off", "off", "prompt", 1.0), tried("stage", "stage", "weights", 1.0)], "prompt"),
        (
            0.0,
            [tried("prompt off", "off", "prompt", 0.75), tried("stage", "stage", "weights", 1.0)],
            "weights",
        ),  # luck, not a repair
        (0.0, [tried("stage", "stage", "weights", 1.0)], "weights"),
        (0.0, [tried("rule", "rule", "policy", 0.0)], "weights"),
        (1.0, [tried("rule", "rule", "policy", 1.0)], "cannot tell"),  # asked again it is right
        (0.75, [tried("rule", "rule", "policy", 1.0)], "cannot tell"),  # drawn anew it is mostly right, too
        (0.0, [tried("a", "off", "policy", 1.0), tried("b", "off", "tools", 1.0)], "cannot tell"),
        (
            0.0,
            [tried("a", "off", "policy", 1.0, 0.5), tried("b", "off", "tools", 1.0)],
            "tools",
        ),  # the other breaks liked answers
        (
            0.0,
            [
                tried("a", "prompt", "prompt", 1.0),
                tried("c", "prompt", "prompt", 0.0),
                tried("b", "off", "tools", 1.0),
            ],
            "prompt",
        ),  # the smaller change
        (
            0.0,
            [tried(f"without {n}", "prompt", "prompt", 1.0) for n in "abc"]
            + [tried("off", "off", "retrieval", 1.0)],
            "retrieval",
        ),  # whichever sentence is left out: none of them is the cause
        (
            0.0,
            [tried(f"without {n}", "prompt", "prompt", float(n == "b")) for n in "abc"],
            "prompt",
        ),
        (2 / 3, [tried("greedy", "decoding", "decoding", 1.0)], "decoding"),
        (2 / 3, [tried("greedy", "decoding", "decoding", 2 / 3)], "cannot tell"),
        (1 / 3, [tried("a", "off", "policy", 2 / 3)], "weights"),  # not by half
    ],
)
def test_the_label_follows_what_the_changes_did(before: float, changes: list[Tried], label: str) -> None:
    found, best, why = decide(before, changes)
    assert found == label
    assert why
    assert best is None or best.label == label


def test_a_complaint_that_is_given_again_is_not_chance_however_near_the_right_answer_is() -> None:
    """Greedy answers: wrong again as it was asked, though half of the draws are right."""
    assert decide(0.5, [tried("a", "off", "policy", 0.75)], now=0.0)[0] == "weights"
    assert decide(0.5, [tried("a", "off", "policy", 1.0)], now=0.0)[0] == "policy"
    assert decide(0.0, [tried("a", "off", "policy", 1.0)], now=1.0)[0] == "cannot tell"


def test_a_refused_question_is_repaired_by_an_answer_whatever_it_says() -> None:
    refused = asked(
        refusal=Refusal("policy", "pirates", "", "No."), said="No.", corrected="It leaves at nine."
    )
    assert right(refused, Completion("It leaves at ten.", "stop")) is True
    assert right(refused, Completion("I cannot help with that.", "stop")) is False
    rightly = asked(
        refusal=Refusal("policy", "pirates", "", "No."), said="No.", corrected="I cannot help with it."
    )
    assert right(rightly, Completion("It leaves at ten.", "stop")) is False, (
        "it should have refused in other words"
    )


def test_without_a_corrected_answer_only_a_refusal_can_be_judged() -> None:
    assert right(asked(), Completion("At 9.", "stop")) is None
    refused = asked(refusal=Refusal("policy", "pirates", "", "No."), said="No.")
    assert right(refused, Completion("It leaves at nine.", "stop")) is True
    assert right(refused, Completion("I cannot help with that.", "stop")) is False
    assert right(refused, Completion("No.", "stop", refusal=Refusal("policy", "pirates", "", "No."))) is False


@pytest.mark.parametrize(
    ("text", "wanted", "is_alike"),
    [
        ("9.", "At 9.", False),
        ("The ferry leaves at 9 today.", "At 9", True),
        ("At 90.", "At 9", False),
        ("At 9. " + "And so on. " * 20, "At 9", False),
        ("a b c d e f g h i j k l m n", "a b c d e f g h i j k l m n", True),
        ("a b c d e f g h i j k l m x", "a b c d e f g h i j k l m n", True),
        (
            "quite another text of some length that says nothing of it at all",
            "a b c d e f g h i j k l m n",
            False,
        ),
    ],
)
def test_an_answer_is_right_if_it_says_what_the_user_wrote(text: str, wanted: str, is_alike: bool) -> None:
    assert alike(text, wanted) is is_alike


def test_a_passage_is_put_right_where_the_answer_stands_in_it() -> None:
    wrong, missing = complaints.differing("It leaves at 22.", "At 9.")
    assert (wrong, missing) == ({"=22e0": "22"}, {"=9e0": "9"})
    text = "Corkel 22. Jorpel 2. Brevik 22."
    assert complaints.replaced(text, wrong, "9") == "Corkel 9. Jorpel 2. Brevik 9."
    assert complaints.replaced("Corkel 2.", wrong, "9") == "Corkel 2."


def test_an_answer_that_is_from_no_passage_has_none_to_put_right(tmp_path: Path) -> None:
    stack = plants.stack_of(HEALTHY["as declared"], tmp_path)
    passage = Passage("a#1", "Corkel 22.", 1.0, "a.md")
    with_it = asked("When?", passage, corrected="9.", said="22.")
    assert complaints.passages_put_right(stack, with_it) is not None
    assert complaints.passages_put_right(stack, asked("When?", passage, corrected="9.", said="17.")) is None
    assert complaints.passages_put_right(stack, asked("When?", corrected="9.", said="22.")) is None
    assert complaints.passages_put_right(stack, asked("When?", passage, said="22.")) is None


def test_cases_are_suite_items_that_name_the_layer_and_the_repair() -> None:
    complaint = asked(corrected="At 9.")
    head = "t", "When to Corkel?", "At 10.", "At 9."
    one = RoutedComplaint(*head, "retrieval", "notices", "passages put right", "", "", {}, {})
    found = complaints.RoutedComplaints("x", (one, replace(one, corrected=None)), 0)
    ((label, item),) = complaints.cases(found, {"t": complaint.turn})
    assert label == item.axis == "retrieval"
    assert {"turn:t", "layer:notices", "repair:passages put right"} <= set(item.tags)
    assert wrong_target(item) is None


async def test_complaints_that_nobody_corrected_are_said_to_be_unclear(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    stack = plants.stack_of(HEALTHY["as declared"], tmp_path)
    services = clerk.services(tmp_path, clerk.runtime(stack, tokenizer, tmp_path, {}))
    found = await asyncio.to_thread(complaints.run, stack, services, tmp_path, [asked()], [], name="x")
    assert [(c.label, c.why) for c in found.complaints] == [
        ("cannot tell", "nobody said what is right: ask for a corrected answer")
    ]
    assert complaints.section(found).title == "Complaints by layer"
