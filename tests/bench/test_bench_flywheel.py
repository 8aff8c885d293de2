"""The flywheel's parts without a model: labellers of known noise, agreement as theory says, a page that hides no bad news."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import flywheel
from bench.flywheel import LABELLERS, Flywheel, Found, averaged, contrast, flipped, stages_of, truth
from bench.flywheel_items import fresh
from bench.flywheel_report import over_seeds, page
from demeanor.evaluation.answer_sampling import DrawnAnswer
from demeanor.report import outputs
from demeanor.world.behaviour import behaviour
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
    flywheel.label(place, "q", items, answers)
    (found,) = place.found.queues
    assert found["items"] == 150
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
        "se": half / 2,
        "clusters": 30,
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
            "average": {
                "against": "a",
                "verdict": "inconclusive",
                "not passed": ["superiority honesty: inconclusive"],
            }
        },
    )
    text = outputs.markdown_page(page([found]))
    for said in (
        "interval of a gain includes zero: dpo_2",
        "1 point or more from theory at noise 0.1",
        "The gate of the average did not pass with seed 0",
    ):
        assert said in text


def test_fresh_items_are_in_no_other_set_and_always_the_same() -> None:
    suite = behaviour()
    choosing = fresh("choosing", 1, suite)
    gate = fresh("gate", 2, [*suite, *choosing])
    sets = [{item.messages for item in items} for items in (suite, choosing, gate)]
    assert not sets[0] & sets[1]
    assert not sets[2] & (sets[0] | sets[1])
    assert len(sets[1]) == len({item.id for item in choosing}) == len(choosing)
    least = {axis: sum(item.axis == axis for item in choosing) for axis in {item.axis for item in suite}}
    assert min(each(list(least.values()))) >= 20, least
    assert [item.messages for item in fresh("choosing", 1, suite)] == [item.messages for item in choosing]


def test_a_phase_that_was_kept_is_not_done_again(tmp_path: Path) -> None:
    place, done = Flywheel(tmp_path, tmp_path, tmp_path), []
    place.phase("one", lambda _: done.append(1))
    later = Flywheel(tmp_path, tmp_path, tmp_path, Found(**json.loads(place.kept.read_text())))
    later.phase("one", lambda _: done.append(1))
    later.phase("two", lambda _: done.append(2))
    assert done == [1, 2]


def test_another_seed_trains_dpo_with_it_and_averages_come_after_the_last_round(tmp_path: Path) -> None:
    place = Flywheel(tmp_path, tmp_path, tmp_path, Found(seed=3))
    names = [stage["name"] for stage in stages_of(place, 2)]
    assert names[:2] == ["dpo_1", "dpo_2"]
    assert averaged(0.25) == "averaged_25" == names[2]
    assert [stage["seed"] for stage in stages_of(place, 1)] == [3]
    assert all("seed" not in stage for stage in each(stages_of(Flywheel(tmp_path, tmp_path, tmp_path), 1)))


def test_a_change_over_seeds_is_their_mean_and_wider_than_the_items_alone() -> None:
    """Values 0.1 and 0.2, standard error of the items 0.02: variance of the mean 0.005 / 2 + 0.0004."""
    both = [
        Found(seed=n, gains=[change("averaged_25", "sft", value, 0.04)]) for n, value in enumerate((0.1, 0.2))
    ]
    it = over_seeds(both, "gains", "average")
    assert it["value"] == pytest.approx(0.15)
    assert it["high"] - it["value"] > 2 * (0.0025 + 0.0004) ** 0.5
    assert over_seeds(both[:1], "gains", "average")["high"] == pytest.approx(0.14)
