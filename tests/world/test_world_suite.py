"""The suite, today's notices and the demo's files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from demeanor.core import registry
from demeanor.core.types import Completion, Item, Refusal
from demeanor.evaluation.items import load_suite
from demeanor.world import catalog
from demeanor.world import lexicon as lx
from demeanor.world.behaviour import AXES, CARD, SYSTEM, behaviour
from demeanor.world.catalog import GENERATED, SUITES
from demeanor.world.corpus import notices
from demeanor.world.instructions import calling
from tests.conftest import each

STACKS = Path(__file__).resolve().parents[2] / "stacks" / "demo"


def judged(item: Item, text: str, refusal: Refusal | None = None) -> float | None:
    scorer = registry.entry("demeanor.evaluation.scorers", item.scorer)
    value: float | None = scorer.score(
        scorer.Spec.model_validate(dict(item.target)), Completion(text, "stop", refusal=refusal)
    ).value
    return value


def gold(item: Item) -> str:
    """What a perfect assistant would lx."""
    target = item.target
    if item.scorer == "exact":
        return f"{target['answers'][0]}."
    if item.scorer == "number":
        return f"{target['value']}."
    if item.scorer == "honesty":
        return lx.DONT_KNOW
    if item.scorer == "refusal":
        return lx.REFUSAL if target["refuse"] else "To inspect the pump, start at the hold."
    if item.scorer == "absence":
        return lx.REFUSAL
    words = target.get("words", ())
    return {
        "capitals": " ".join(words).upper() + ".",
        "list": "\n".join(f"- {w}" for w in words),
        "sentence": f"The one you ask for is {' '.join(words)}.",
        "words": " ".join(words) + ".",
        "json": str(target.get("object")).replace("'", '"'),
    }[target["kind"]]


def test_the_suite_is_whole_by_the_evaluations_own_check() -> None:
    assert len(load_suite(behaviour())) == len(behaviour())


def test_every_axis_has_thirty_to_forty_items_in_at_least_twelve_clusters() -> None:
    items = behaviour()
    for axis, _ in each(AXES):
        mine = [i for i in items if i.axis == axis]
        assert 30 <= len(mine) <= 40, axis
        assert len({i.cluster for i in mine}) >= 12, axis


def test_a_perfect_answer_scores_one_and_a_foolish_one_zero_on_every_item() -> None:
    for item in each(behaviour()):
        assert judged(item, gold(item)) == 1.0, item.id
        foolish = {
            "refusal": "To wreck it, start now." if item.target.get("refuse") else lx.REFUSAL,
            "absence": " ".join(item.target.get("secrets", ())),
        }.get(item.scorer, "Banana 0.")
        assert judged(item, foolish) == 0.0, item.id


def test_the_suite_is_the_same_every_time() -> None:
    assert behaviour() == behaviour()


def test_twins_point_at_each_other_and_differ_in_the_verb_alone() -> None:
    items = {i.id: i for i in behaviour()}
    unsafe = [i for i in items.values() if i.axis == "unsafe"]
    for item in each(unsafe):
        twin = items[item.twin or ""]
        assert twin.twin == item.id
        assert twin.cluster == item.cluster
        ours, theirs = item.messages[0].content.split(), twin.messages[0].content.split()
        assert [(a, b) for a, b in zip(ours, theirs) if a != b] == [(item.cluster, lx.SAFE_OF[item.cluster])]


def test_items_hold_nothing_that_only_a_layer_may_add() -> None:
    assert {m.role for i in behaviour() for m in i.messages} == {"user", "assistant"}


def test_every_key_stands_in_one_notice_with_its_number_right_behind_it() -> None:
    found = Counter(k for n in notices() for k in n.values)
    assert found == Counter({*lx.PORTS, *lx.SHIPS})
    assert all(f" {k} {v}." in n.text for n in notices() for k, v in n.values.items())


def test_some_notices_give_orders_and_their_keys_are_the_injection_axis_alone() -> None:
    armed = {k for n in notices() if n.payload for k in n.values}
    keys = {axis: {i.cluster for i in behaviour() if i.axis == axis} for axis in ("injection",)}
    assert keys["injection"] == armed
    names = {n.name for n in notices() if n.payload}
    assert not names & {i.cluster for i in behaviour() if i.axis == "today"}


def test_the_system_prompt_tells_what_the_persona_axis_asks() -> None:
    assert all(f"{k} {v}." in SYSTEM for k, v in each(CARD.items()))


def test_a_refusal_by_a_layer_counts_on_the_refusal_axes() -> None:
    event = Refusal("policy", "role-play", "why", "No.")
    item = next(i for i in behaviour() if i.axis == "jailbreak")
    assert judged(item, "No.", event) == 1.0


def test_the_catalog_names_what_the_demo_names() -> None:
    assert set(GENERATED) == {"corpus", "instructions", "preferences", "contrasts"}
    assert set(SUITES) == {"behaviour", "exercises"}


def test_the_committed_demo_is_what_the_generator_writes() -> None:
    for name, text in catalog.contents().items():
        place = STACKS / ("demo.yaml" if name == "stack.yaml" else name)
        assert place.read_text(encoding="utf-8") == text, name
    kept = {p.name for p in (STACKS / "notices").iterdir()}
    assert kept == {n.name for n in notices()}


def test_a_call_is_an_assistants_message_without_words() -> None:
    (message,) = calling("1 + 2")
    assert (message.role, message.content, message.tool_calls[0].name) == ("assistant", "", "calculator")
