"""A/B tests of users: one value a user, fixed once, whatever is added later; verdicts in the direction that is better."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from demeanor.core.exposures import Exposure
from demeanor.evaluation import ab_test
from demeanor.evaluation.ab_test import UserValue, analyse, experiment_id, user_values
from demeanor.stack.serving_schema import ExperimentSpec, ScoreSpec

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def at(hours: float) -> datetime:
    return NOON + timedelta(hours=hours)


def exposure(
    n: int, unit: str, hours: float, value: float | None = None, arm: int = 0, **given: Any
) -> Exposure:
    scored = None if value is None else at(hours)
    ratings = tuple((at(h), v) for h, v in given.pop("ratings", ()))
    return Exposure(f"t{n}", unit, arm, at(hours), value, given.pop("scored", scored), ratings)


def score(kind: str, **given: Any) -> ScoreSpec:
    return ScoreSpec.model_validate({"kind": kind, **given})


def spec(kind: str = "refused", **given: Any) -> ExperimentSpec:
    arms = given.pop("arms", [{"model": "desk", "share": 0.5}, {"model": "desk-prompt", "share": 0.5}])
    settings = {"name": "prompt", "arms": arms, "score": {"kind": kind, "window_hours": 0}} | given
    return ExperimentSpec.model_validate(settings)


def test_a_user_counts_once_with_the_mean_of_their_window_when_it_is_over() -> None:
    turns = [
        exposure(1, "u", 0, 1.0),
        exposure(2, "u", 5, 0.0),
        exposure(3, "u", 30, 1.0),
        exposure(4, "v", 20, 1.0),
    ]
    day = score("refused")
    assert user_values(day, turns, at(23.9)) == []
    assert user_values(day, turns, at(24)) == [UserValue("u", 0, 0.5, at(24))]
    assert user_values(day, turns, at(44)) == [UserValue("u", 0, 0.5, at(24)), UserValue("v", 0, 1.0, at(44))]
    assert user_values(score("refused", window_hours=0), turns, at(24)) == [
        UserValue("u", 0, 1.0, at(0)),
        UserValue("v", 0, 1.0, at(20)),
    ]


def test_nothing_that_comes_after_the_window_changes_a_value() -> None:
    """Looking often is free only if what counted once counts so for ever."""
    early = [exposure(1, "u", 0, ratings=[(1, 1.0)])]
    late = [exposure(1, "u", 0, ratings=[(1, 1.0), (25, -1.0)]), exposure(2, "u", 26, ratings=[(27, -1.0)])]
    complaint, feedback = score("complaint"), score("feedback")
    assert user_values(complaint, early, at(24)) == user_values(complaint, late, at(90))
    assert (
        user_values(feedback, early, at(24))
        == user_values(feedback, late, at(90))
        == [UserValue("u", 0, 1.0, at(24))]
    )


def test_complaints_are_of_all_turns_and_feedback_of_rated_ones() -> None:
    turns = [
        exposure(1, "u", 0),
        exposure(2, "u", 1, ratings=[(2, -1.0)]),
        exposure(3, "v", 0),
        exposure(4, "u", 2, ratings=[(3, 0.0)]),
    ]
    assert [v.value for v in user_values(score("complaint"), turns, at(30))] == [pytest.approx(1 / 3), 0.0]
    assert [(v.unit, v.value) for v in user_values(score("feedback"), turns, at(30))] == [("u", 0.0)]
    first = user_values(score("feedback", window_hours=0), turns, at(30))
    assert first == [UserValue("u", 0, 0.0, at(2))]  # fixed when it was given


def test_a_score_that_an_evaluator_gave_too_late_does_not_count() -> None:
    turns = [exposure(1, "u", 0, 1.0, scored=at(3)), exposure(2, "u", 1, 0.0, scored=at(25))]
    assert user_values(score("evaluator", evaluator="polite"), turns, at(30)) == [
        UserValue("u", 0, 1.0, at(24))
    ]


def test_tokens_are_clipped_to_their_bounds_and_reported_as_tokens() -> None:
    rng = np.random.default_rng(0)
    turns = [
        exposure(
            n, f"u{n}", n / 100, float(100 + 20 * (n % 2) + rng.integers(0, 30)) if n else 9999.0, arm=n % 2
        )
        for n in range(2000)
    ]
    found = analyse(
        spec("tokens", score={"kind": "tokens", "bounds": [0, 400], "window_hours": 0}), turns, at(50)
    )
    control, treatment = found.arms
    assert control.mean is not None
    assert treatment.mean is not None
    assert control.mean.value == pytest.approx(114.5, abs=1.5)
    assert treatment.mean.value == pytest.approx(134.5, abs=1.5)
    (contrast,) = found.contrasts
    assert contrast.difference.low < 20 < contrast.difference.high
    assert contrast.decision == "worse"  # fewer tokens are better unless it is said otherwise


@pytest.mark.parametrize(("better", "decision"), [(None, "worse"), ("lower", "worse"), ("higher", "better")])
def test_the_verdict_is_in_the_direction_that_was_declared(better: str | None, decision: str) -> None:
    turns = [exposure(n, f"u{n}", n / 100, float(n % 2), arm=n % 2) for n in range(400)]
    declared = {"kind": "refused", "window_hours": 0} | ({"better": better} if better else {})
    (contrast,) = analyse(spec(score=declared), turns, at(9)).contrasts
    assert contrast.decision == decision
    assert contrast.after is not None
    assert contrast.after < 60


def test_three_arms_share_the_error() -> None:
    """Each of two contrasts gets half of alpha: without an effect at most 5 of 100 experiments name any (seed 0, 100 of them)."""
    arms = [{"model": f"desk:{i}", "share": share} for i, share in enumerate((0.5, 0.25, 0.25))]
    declared, rng, named = spec(arms=arms), np.random.default_rng(0), 0
    for _ in range(100):
        chosen = rng.choice(3, size=300, p=(0.5, 0.25, 0.25))
        values = (rng.random(300) < 0.3).astype(float)
        turns = [exposure(n, f"u{n}", n / 100, v, arm=int(a)) for n, (a, v) in enumerate(zip(chosen, values))]
        named += any(c.decision != "not yet" for c in analyse(declared, turns, at(9)).contrasts)
    assert named <= 5


def test_a_split_that_is_not_the_declared_one_is_a_warning() -> None:
    turns = [exposure(n, f"u{n}", n / 100, 0.0, arm=int(n % 3 == 0)) for n in range(900)]
    assert "sample-ratio mismatch" in analyse(spec(), turns, at(9)).warnings[0]
    scored = [exposure(n, f"u{n}", n / 100, None if n % 2 and n % 3 else 0.0, arm=n % 2) for n in range(900)]
    assert "changes who gets a score" in analyse(spec(), scored, at(9)).warnings[0]
    fair = [exposure(n, f"u{n}", n / 100, 0.0, arm=n % 2) for n in range(900)]
    assert analyse(spec(), fair, at(9)).warnings == ()


def test_another_score_or_another_arm_is_another_experiment() -> None:
    same = experiment_id(spec(), ["k1", "k2"])
    assert experiment_id(spec(), ["k1", "k2"]) == same
    others = {
        experiment_id(spec(), ["k1", "k3"]),
        experiment_id(spec(score={"kind": "refused", "window_hours": 1}), ["k1", "k2"]),
        experiment_id(spec(score={"kind": "refused", "window_hours": 0, "better": "higher"}), ["k1", "k2"]),
        experiment_id(spec(alpha=0.1), ["k1", "k2"]),
        experiment_id(spec(salt="x"), ["k1", "k2"]),
    }
    assert len(others) == 5
    assert same not in others


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"arms": [{"model": "a", "share": 0.5}, {"model": "b", "share": 0.4}]}, "add up to 0.9"),
        ({"arms": [{"model": "a", "share": 0.5}, {"model": "a", "share": 0.5}]}, "nothing to compare"),
        ({"score": {"kind": "tokens"}}, "bounds: wanted with kind tokens"),
        ({"score": {"kind": "refused", "scorer": "exact"}}, "scorer: is for kind scorer"),
        ({"score": {"kind": "complaint", "window_hours": 0}}, "complaints come after the answer"),
        ({"score": {"kind": "ms", "bounds": [5, 5]}}, "wanted the least and the most"),
        ({"score": {"kind": "evaluator"}}, "evaluator: wanted with kind evaluator"),
    ],
)
def test_a_declaration_that_cannot_be_tested_is_refused(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        spec(**given)


def test_an_experiment_without_users_says_so() -> None:
    found = analyse(spec(), [], at(0))
    assert [arm.users for arm in found.arms] == [0, 0]
    assert [(c.decision, c.difference) for c in found.contrasts] == [("not yet", (0.0, -1.0, 1.0))]
    assert ab_test.lines(found)[0][7] == "-"
