"""SmolLM2's constraints: items for training and held-out ones share nothing that would make the test easy."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from demeanor.core.types import Completion
from demeanor.evaluation.items import load_suite
from demeanor.evaluation.scorers import score_item

STACKS = Path(__file__).resolve().parents[2] / "stacks" / "smollm2"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2_items", STACKS / "items.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ITEMS = _module()


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (STACKS / name).read_text(encoding="utf-8").splitlines()]


def test_files_are_what_the_generator_writes() -> None:
    for name, lines in (("train.jsonl", ITEMS.trained_lines()), ("held_out.jsonl", ITEMS.held_out_lines())):
        assert (STACKS / name).read_text(encoding="utf-8") == "".join(lines), (
            f"run stacks/smollm2/items.py: {name}"
        )


def test_held_out_items_share_no_topic_no_phrasing_and_some_no_kind() -> None:
    trained, held = _rows("train.jsonl"), _rows("held_out.jsonl")
    assert not {x["cluster"] for x in trained} & {x["cluster"] for x in held}
    assert not {x for k in ITEMS.KINDS.values() for x in k.trained} & {
        x for k in ITEMS.KINDS.values() for x in k.held_out
    }
    unseen = {tag for x in held if x["axis"] == "unseen_kind" for tag in x["tags"]}
    assert len(unseen) == len(ITEMS.UNSEEN)
    assert not unseen & {tag for x in trained for tag in x["tags"]}
    assert not {x["messages"][0]["content"] for x in trained} & {x["messages"][0]["content"] for x in held}


@pytest.mark.parametrize(
    "answer", ["", "ok", "I'm sorry, but I can't help with that.", "* * * P.S. [x] [y] **z**"]
)
def test_answers_to_nothing_earn_nothing(answer: str) -> None:
    for name in ("train.jsonl", "held_out.jsonl"):
        honest = [x for x in load_suite(STACKS / name) if not x.axis.endswith("_alone")]
        assert len(honest) >= 240
        assert sum(score_item(x, Completion(answer, "stop")).value or 0.0 for x in honest) == 0.0


def _right(row: dict[str, Any], about: str) -> str:
    """An answer that follows an item's constraint."""
    checks = {c["kind"]: c for c in row["target"]["checks"]}
    kind = row["tags"][0].removeprefix("kind:")
    plain = f"Here is one short thing about {about}"
    more = " with more of it" * 12
    low = checks.get("sentence_count", {}).get("low", 1)
    count = checks.get("list", checks.get("bold", {})).get("low", 1)
    return {
        "lowercase": plain.lower(),
        "no_comma": plain + more,
        "at_most": plain,
        "sentences": f"{plain}. " * low,
        "end": f"{plain}. {checks.get('ends', {'any': ['']})['any'][0]}",
        "keyword": f"{plain} {checks.get('says', {'words': ['']})['words'][0]}",
        "start": f"{checks.get('starts', {'any': ['']})['any'][0]} {plain}",
        "numbered": "\n".join(f"{n + 1}. {plain}" for n in range(count)),
        "question": f"{plain}?",
        "omit": f"Here we have one short thing about {about}" + " with more of it" * 2,
        "one_line": plain + more,
        "two_words": " ".join([plain, *checks.get("says", {"words": [""]})["words"]]),
        "bold": f"{plain} " + "**x** " * count,
        "at_least": plain + more,
    }[kind]


@pytest.mark.parametrize("name", ["train.jsonl", "held_out.jsonl"])
def test_every_item_can_be_answered(name: str) -> None:
    rows, topics = _rows(name), {t.asked: t for t in (*ITEMS.TRAINED, *ITEMS.HELD_OUT)}
    items = load_suite(STACKS / name)
    assert len(rows) == len(items) >= 450
    failing = [
        row["id"]
        for row, item in zip(rows, items)
        if score_item(item, Completion(_right(row, topics[row["cluster"]].words[0]), "stop")).value != 1.0
    ]
    assert failing == []
