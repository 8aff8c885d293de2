"""Calibration and duels: closed forms, slow twins, and models whose truth was planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from demeanor.core.types import Item, Message
from demeanor.evaluation import ladder, profile, win_rates
from demeanor.evaluation.result_rows import Row


def test_the_ece_of_ten_equal_bins_is_the_sum_written_out() -> None:
    rng = np.random.default_rng(0)
    c = rng.random(200)
    y = (rng.random(200) < c**2).astype(float)
    order, total = np.argsort(c), 0.0
    for b in range(10):
        mine = order[20 * b : 20 * b + 20]
        total += 20 / 200 * abs(y[mine].mean() - c[mine].mean())
    assert profile.ece(c, y) == pytest.approx(total)


def test_the_order_of_items_with_one_confidence_does_not_matter() -> None:
    c, y = np.full(30, 0.7), np.array([1.0] * 21 + [0.0] * 9)
    assert profile.ece(c, y) == pytest.approx(0.0)
    assert profile.ece(c, y[::-1]) == pytest.approx(0.0)


def test_a_perfect_model_is_called_miscalibrated_in_five_percent_of_runs() -> None:
    rng, called = np.random.default_rng(1), 0
    for run in range(3000):
        c = rng.beta(2, 1, 100)
        y = (rng.random(100) < c).astype(float)
        called += profile.calibration(c, y, seed=run, draws=200).p < 0.05
    assert called / 3000 == pytest.approx(0.05, abs=0.01)


def test_an_overconfident_model_is_caught_and_a_perfect_ones_ece_is_not_zero() -> None:
    rng = np.random.default_rng(2)
    c = rng.beta(5, 1, 300)
    perfect = profile.calibration(c, (rng.random(300) < c).astype(float), seed=0)
    over = profile.calibration(c, (rng.random(300) < c - 0.2).astype(float), seed=0)
    assert perfect.expected > 0.02
    assert over.p < 0.01
    assert over.ece > over.null_high


def test_brier_is_the_mean_square_and_its_null_knows_no_item() -> None:
    c, y = np.array([0.9, 0.1] * 50), np.array([1.0, 0.0] * 50)
    found = profile.calibration(c, y, seed=0)
    assert found.brier == pytest.approx(0.01)
    assert found.brier_shuffled == pytest.approx(
        (0.01 + 0.81) / 2, abs=0.01
    )  # half the shuffled outcomes are right
    assert found.brier_p < 0.001
    assert profile.calibration(c, np.array([1.0, 1.0, 0.0, 0.0] * 25), seed=0).brier_p > 0.05


def test_a_longer_answer_wins_raw_but_not_at_equal_length() -> None:
    rng = np.random.default_rng(3)
    n = 800
    ours, theirs = rng.normal(260, 60, n), rng.normal(200, 60, n)
    x = np.tanh((ours - theirs) / (ours - theirs).std())
    y = (rng.random(n) < special.expit(-0.3 + 1.5 * x)).astype(float)  # at equal length 42.6%
    found = win_rates.win_rate(y, ours, theirs, range(n), seed=0, draws=200)
    assert found.raw_low > 0.5
    assert found.low < special.expit(-0.3) < found.high < 0.55
    assert found.slope == pytest.approx(1.5, abs=0.4)


def test_where_lengths_do_not_matter_both_rates_agree() -> None:
    y = np.array([1.0] * 60 + [0.0] * 40)
    found = win_rates.win_rate(y, np.full(100, 7.0), np.full(100, 7.0), range(100), seed=0, draws=50)
    assert found.controlled == pytest.approx(0.6, abs=1e-4)


def test_the_length_controlled_interval_covers_the_truth() -> None:
    rng, hits = np.random.default_rng(4), 0
    for run in range(150):
        longer = rng.normal(30, 60, 200)
        y = (rng.random(200) < special.expit(0.2 + np.tanh(longer / longer.std()))).astype(float)
        found = win_rates.win_rate(y, longer, np.zeros(200), range(200), seed=run, draws=120)
        hits += found.low <= special.expit(0.2) <= found.high
    assert hits / 150 == pytest.approx(0.95, abs=0.05)


def test_two_players_have_the_logit_of_their_win_rate_in_elo_points() -> None:
    found = win_rates.ratings(
        ["a"] * 100, ["b"] * 100, np.array([1.0] * 75 + [0.0] * 25), range(100), seed=0, draws=20
    )
    assert [r.player for r in found] == ["a", "b"]
    assert found[0].rating - found[1].rating == pytest.approx(400 * np.log10(3), abs=0.1)


def test_planted_strengths_are_found_and_order_of_a_duel_does_not_matter() -> None:
    rng = np.random.default_rng(5)
    truth = {"x": 150.0, "y": 0.0, "z": -150.0}
    pairs = [("x", "y"), ("y", "z"), ("z", "x")] * 400
    y = np.array([float(rng.random() < 1 / (1 + 10 ** ((truth[b] - truth[a]) / 400))) for a, b in pairs])
    first, second = zip(*pairs)
    found = win_rates.ratings(first, second, y, range(len(y)), seed=0, draws=100)
    assert all(r.low <= truth[r.player] <= r.high for r in found)
    turned = win_rates.ratings(second, first, 1 - y, range(len(y)), seed=0, draws=2)
    assert [r.rating for r in turned] == pytest.approx([r.rating for r in found], abs=0.01)


def test_an_unbeaten_player_has_a_finite_rating() -> None:
    found = win_rates.ratings(["a"] * 5, ["b"] * 5, np.ones(5), range(5), seed=0, draws=5)
    assert np.isfinite(found[0].rating)


def test_stated_confidences_are_read_from_what_the_scorer_told() -> None:
    from demeanor.core.types import Completion
    from demeanor.evaluation.profile import stated
    from demeanor.evaluation.scorers import confidence

    spec = confidence.Spec(answers=("Paris",))
    told = [
        confidence.score(spec, Completion(f"{city}. Confidence: {p}%", "stop")).answer
        for city, p in [("Paris", 90), ("Paris", 90), ("Lyon", 90), ("Lyon", 40)]
    ]
    found = stated(
        "v", [(answer, str(n)) for n, answer in enumerate([*told, "complied", "an answer of another scorer"])]
    )
    assert found is not None
    assert (found.variant, found.n, found.right) == ("v", 4, 0.5)
    assert found.mean_confidence == pytest.approx((0.9 * 3 + 0.4) / 4)
    assert found.ece == pytest.approx(0.75 * abs(0.9 - 2 / 3) + 0.25 * 0.4)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.81 + 0.16) / 4)
    assert stated("v", [("complied", "c")]) is None


def test_answers_of_several_seeds_do_not_make_a_calibration_surer() -> None:
    items = [
        Item(f"i{n}", (Message("user", "?"),), "confidence", {"answers": ["x"]}, "a", f"c{n}")
        for n in range(20)
    ]
    told = ["80% right" if n % 5 else "80% wrong" for n in range(20)]
    found = [
        ladder.ladder(
            [
                Row(
                    "v",
                    "k",
                    i.id,
                    i.id,
                    seed,
                    "a",
                    i.cluster,
                    None,
                    (),
                    0.9,
                    answer,
                    "",
                    "",
                    "",
                    "",
                    "stop",
                    1,
                    1,
                    1.0,
                    {},
                    (),
                )
                for i, answer in zip(items, told)
                for seed in seeds
            ],
            items,
            name="r",
            steps=["v"],
            without={},
        ).confidences
        for seeds in ((0,), (1, 0, 2))
    ]
    assert found[0] == found[1]
    assert found[0][0].n == 20


def test_a_perfect_speaker_whose_answers_hang_together_is_called_wrong_no_more_often_than_one_in_twenty() -> (
    None
):
    """60 answers in 12 clusters of 5 that are right and wrong together: with one draw each the null is far too narrow."""
    rng, runs = np.random.default_rng(0), 200
    index_N = np.repeat(np.arange(12), 5)
    wrong = naive = 0
    for _ in range(runs):
        c_N = rng.uniform(0.05, 0.95, 12)[index_N]
        y_N = (rng.random(12)[index_N] < c_N).astype(float)
        wrong += profile.calibration(c_N, y_N, seed=0, draws=300, clusters=list(index_N)).p < 0.05
        naive += profile.calibration(c_N, y_N, seed=0, draws=300).p < 0.05
    assert wrong / runs <= 0.08  # 200 runs: a standard error of 1.5 points
    assert naive / runs > 0.4
