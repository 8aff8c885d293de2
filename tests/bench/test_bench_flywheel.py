"""The flywheel's parts without a model: labellers of known noise, agreement as theory says, a page that hides no bad news."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import flywheel
from bench.flywheel import LABELLERS, Flywheel, Found, contrast, flipped, page, truth
from demeanor.evaluation.answer_sampling import DrawnAnswer
from demeanor.report import outputs
from demeanor.world.exercises import exercises
from tests.conftest import each


def drawn(*texts: str) -> list[DrawnAnswer]:
    return [DrawnAnswer(text, "desk:sft", "k", n, (-1.0,)) for n, text in enumerate(texts)]


def test_labellers_err_as_often_as_they_are_made_to_and_always_on_the_same_items() -> None:
    for name, rate in each(LABELLERS.items()):
        said = [flipped(name, f"item-{n}", rate) for n in range(4000)]
        assert sum(said) / 4000 == pytest.approx(rate, abs=0.02)
        assert said == [flipped(name, f"item-{n}", rate) for n in range(4000)]


def test_only_prompts_whose_answers_differ_in_truth_are_labelled_and_alpha_is_theory(tmp_path: Path) -> None:
    items = [item for item in exercises() if item.axis == "facts"][:200]
    right = [item.target["answers"][0] for item in items]
    answers = [
        drawn(f"{word}.", "Nobody knows.") if n % 4 else drawn(f"{word}.", f"{word}!")
        for n, word in enumerate(right)
    ]
    assert truth(items[0], right[0]) == 1.0
    assert contrast(items[0], answers[0]) is None
    place = Flywheel(tmp_path, tmp_path, tmp_path)
    known = flywheel.label(place, "q", items, answers)
    (found,) = place.found.queues
    assert len(known) == found["items"] == 150
    assert found["labels"] == 450
    assert found["alpha_theory"] == pytest.approx((0.9 * 0.8 + 0.9 * 0.6 + 0.8 * 0.6) / 3)
    assert found["alpha"]["low"] < found["alpha_theory"] < found["alpha"]["high"]


def change(policy: str, against: str, value: float, half: float) -> dict[str, object]:
    return {
        "policy": policy,
        "against": against,
        "items": 9,
        "before": 0.5,
        "after": 0.5 + value,
        "value": value,
        "low": value - half,
        "high": value + half,
    }


def test_the_page_says_what_did_not_work() -> None:
    rewards = {"clean": 0.7, "low": 0.6, "high": 0.8, "noisy": 0.62, "theory": 0.64, "expected_points": 0.5}
    found = Found(
        rewards=[{"noise": 0.1, "trained": 9, "pairs": 9, "labels": 180, "apart_points": 2.0, **rewards}],
        gains=[change("dpo_1", "sft", 0.1, 0.05), change("dpo_2", "sft", 0.01, 0.05)],
        axes=[
            {
                "axis": "facts",
                "taught": True,
                "scores": {"sft": 0.9},
                "change": change("x", "sft", -0.1, 0.05),
            }
        ],
        gates={
            "averaged": {
                "against": "a",
                "verdict": "inconclusive",
                "not passed": ["superiority honesty: inconclusive"],
            }
        },
    )
    text = outputs.markdown_page(page(found))
    for said in (
        "interval of a gain includes zero: dpo_2",
        "1 point or more from theory at noise 0.1",
        "The gate did not pass",
    ):
        assert said in text
