"""The lines that a person reads while an online stage runs."""

from __future__ import annotations

import pytest

from demeanor.training.online_display import evaluation_line, margin, parted, state_line


def seen(step: int, reward: float, gold: float | None, rows: float = 400.0) -> dict[str, float | None]:
    return {
        "step": step,
        "eval_reward": reward,
        "eval_probe/held_out": gold,
        "eval_probe/held_out_rows": rows,
    }


def test_the_state_is_means_over_iterations_without_the_loss() -> None:
    rows = [
        {
            "loss": 9.0,
            "reward": reward,
            "kl": 1.0,
            "completions/mean_length": 8.0,
            "completions/clipped_ratio": 0.25,
            "frac_reward_zero_std": 0.5,
            "time/generate": 1.0,
            "time/score": 1.0,
            "time/train": 2.0,
        }
        for reward in (0.0, 1.0)
    ]
    assert state_line(rows) == (
        "reward 0.500  KL 1.00 nats  length 8.0  truncated 25%  no contrast 50%  generate 25% score 25% train 50%"
    )


def test_the_cost_and_its_multiplier_are_shown_where_there_are_some() -> None:
    assert (
        state_line([{"reward": 1.0, "cost": 0.2, "cost/lambda": 2.0}])
        == "reward 1.000  cost 0.200  lambda 2.00"
    )


def test_an_iteration_without_a_metric_does_not_count_in_its_mean() -> None:
    assert state_line([{"reward": 1.0}, {"kl": 2.0, "reward": None}]) == "reward 1.000  KL 2.00 nats"
    assert state_line([]) == ""


def test_an_evaluation_says_its_reward_with_interval_and_its_held_out_score() -> None:
    found = {"eval_reward": 0.5, "eval_reward_rows": 64.0, "eval_reward/low": 0.4, "eval_reward/high": 0.6}
    assert evaluation_line(3, found) == "after step 3: reward of 64 held-out prompts 0.500 (0.400 to 0.600)"
    assert evaluation_line(3, {"eval_probe/held_out": 0.25}) == "after step 3: held-out score 0.250"
    assert evaluation_line(3, {}) == "evaluated after step 3"


def test_a_reward_that_rises_while_the_held_out_score_falls_is_a_warning() -> None:
    warning = parted([seen(0, 0.1, 0.5), seen(2, 0.5, 0.8), seen(4, 0.9, 0.6)])
    assert warning is not None
    assert (
        "since step 2 the reward went from 0.500 to 0.900, the held-out score from 0.800 to 0.600" in warning
    )


@pytest.mark.parametrize(
    "rows",
    [
        [seen(0, 0.1, 0.5)],  # nothing to compare with
        [seen(0, 0.1, 0.5), seen(2, 0.5, 0.8)],  # both rise
        [seen(0, 0.5, 0.8), seen(2, 0.1, 0.5)],  # both fall
        [seen(0, 0.1, 0.8), seen(2, 0.9, 0.78)],  # within the margin of two shares of 400
        [seen(0, 0.1, 0.8, rows=16.0), seen(2, 0.9, 0.6, rows=16.0)],  # 0.2 is chance for 16 answers
        [seen(0, 0.1, None), seen(2, 0.9, None)],  # no held-out score
    ],
)
def test_no_warning_where_the_two_agree_or_the_difference_may_be_chance(
    rows: list[dict[str, float | None]],
) -> None:
    assert parted(rows) is None


def test_the_margin_is_that_of_two_independent_shares() -> None:
    # variance (.8 x .2 + .5 x .5) / 100 = .0041
    assert margin(seen(0, 0, 0.8, rows=100.0), seen(1, 0, 0.5, rows=100.0)) == pytest.approx(
        1.96 * 0.0041**0.5
    )
    assert margin(seen(0, 0, 1.0), seen(1, 0, 1.0)) == 0.02
