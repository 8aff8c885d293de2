"""A panel of judges: weights by hand, ties, judges that are mostly wrong, and accuracy on pairs the weights have not seen."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from demeanor.evaluation import judge_panel
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.judge_panel import cross_fitted, decide, weight, weights
from demeanor.evaluation.judge_validation import HumanPair
from demeanor.stack.schema import JudgeSpec
from tests.evaluation.scripted_judge import Scripted

NAN = math.nan


def test_weights_are_log_odds_and_a_judge_at_chance_has_none() -> None:
    assert weight(5, 10) == 0
    assert weight(9, 10) == pytest.approx(math.log(9.5 / 1.5))
    people = np.array([1.0, 1, 0, 0])
    said = np.array([[1.0, 0, NAN], [1, 0, 0.5], [0, 1, NAN], [0, 1, NAN]])
    assert weights(said, people) == pytest.approx([math.log(9), -math.log(9), 0])


def test_one_good_judge_outweighs_two_weak_ones_and_equal_sides_tie() -> None:
    said = np.array([[1.0, 0, 0], [NAN, 1, 0], [NAN, NAN, NAN], [0.5, 1, NAN]])
    found = decide(said, np.array([2.0, 0.5, 0.5]))
    assert found[:2].tolist() == [1.0, 0.5]
    assert np.isnan(found[2])
    assert found[3] == 1.0


def test_a_judge_that_is_mostly_wrong_counts_for_the_other_answer() -> None:
    people = np.tile([1.0, 0.0], 50)
    wrong = 1 - people[:, None]
    groups = [f"g{n}" for n in range(100)]
    assert np.array_equal(cross_fitted(wrong, people, groups), people)


def test_independent_judges_together_are_better_than_the_best_of_them() -> None:
    draw = np.random.default_rng(0)
    people = draw.integers(0, 2, 2000).astype(float)
    accuracies = np.array([0.75, 0.7, 0.7, 0.5])
    right = draw.random((2000, 4)) < accuracies
    said = np.where(right, people[:, None], 1 - people[:, None])
    found = cross_fitted(said, people, [f"g{n}" for n in range(2000)])
    panel = float((found == people).mean())
    assert panel > 0.78, "three independent judges by Bayes' rule: 0.795"
    assert panel < 0.82


def test_weights_come_from_other_requests_so_noise_gains_nothing() -> None:
    draw = np.random.default_rng(1)
    people = draw.integers(0, 2, 400).astype(float)
    noise = draw.integers(0, 2, (400, 30)).astype(float)
    found = cross_fitted(noise, people, [f"g{n}" for n in range(400)])
    decided = found != 0.5
    assert 0.4 < float((found[decided] == people[decided]).mean()) < 0.6
    own = decide(noise, weights(noise, people))
    assert float((own == people).mean()) > 0.56, "weights from the same pairs flatter"


def test_real_clients_are_asked_and_told_apart(tmp_path: Path) -> None:
    pairs = [HumanPair(f"p{n}", f"Request {n}", (f"good {n}", f"bad {n}"), 1) for n in range(20)]

    def good(text: str) -> str:
        return f"Better: {1 if text.index('good ') < text.index('bad ') else 2}"

    clients = [
        JudgeClient(
            JudgeSpec(url="http://127.0.0.1:9/v1", model=model), Scripted(says), tmp_path / f"{model}.jsonl"
        )
        for model, says in (("good", good), ("first", lambda text: "Better: 1"), ("mute", lambda text: "hm"))
    ]
    found = judge_panel.measure(clients, pairs, "n")
    by_model = {member.model: member for member in found.members}
    assert by_model["good"].accuracy is not None
    assert by_model["good"].accuracy.value == 1.0
    assert (by_model["first"].contradicted, by_model["first"].weight) == (20, 0.0)
    assert by_model["mute"].missing == 20
    assert found.accuracy is not None
    assert (found.accuracy.value, found.ties, found.best) == (1.0, 0, "good")
    assert judge_panel.section(found).blocks
