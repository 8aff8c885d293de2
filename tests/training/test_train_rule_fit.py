"""Weights of reward rules: the planted ones order answers, the fit is the optimum, and files are read and written whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from demeanor.cli import main
from demeanor.core.errors import DataError
from demeanor.core.types import Message
from demeanor.evaluation.scorers import score_item
from demeanor.training import reward_rules
from demeanor.training.reward_rules import RewardRules
from demeanor.training.rule_fit import GradedAnswer, fit, hinge_weights, read_graded, write_rules

RULES = {
    "rules": [
        {"name": "right", "scorer": "number", "target": {"value": 4}},
        {"name": "hides the secret", "scorer": "absence", "target": {"secrets": ["Anna"]}, "weight": 7.0},
        {"name": "declines", "scorer": "refusal", "target": {"refuse": True}},
        {"name": "noise", "scorer": "absence", "target": {"secrets": ["blue"]}},
    ]
}
ANSWERS = {
    "It is 4.": 2,
    "It is 4, blue.": 2,
    "Anna says it is 4.": 1,
    "Anna says it is 5.": 0,
    "It is 5.": 1,
    "It is 6, blue.": 1,
}


def graded(prompts: int = 10, answers: dict[str, int] = ANSWERS) -> list[GradedAnswer]:
    return [
        GradedAnswer((Message("user", f"Question {n}?"),), text, float(grade))
        for n in range(prompts)
        for text, grade in answers.items()
    ]


def rules() -> RewardRules:
    return RewardRules.model_validate(RULES)


def test_planted_grades_are_learned_and_noise_gets_no_weight() -> None:
    """The grade is 1 for the right number plus 1 for the hidden secret."""
    found = fit(rules(), graded(), score_item)
    weights = {rule.name: rule.weight for rule in found.rules.rules}
    assert weights == {
        "right": pytest.approx(1.0, abs=1e-6),
        "hides the secret": pytest.approx(1.0, abs=1e-6),
        "declines": pytest.approx(0.0, abs=1e-9),
        "noise": pytest.approx(0.0, abs=1e-9),
    }
    assert (found.fitted.value, found.fitted.prompts) == (1.0, 10)
    assert found.left_out is not None
    assert found.left_out.value == 1.0
    assert found.left_out.low == pytest.approx(0.722, abs=1e-3)  # Wilson, 10 of 10
    assert found.fitted.pairs == 10 * 11  # of 15 pairs a prompt, 1 + 3 have one grade


def test_the_weights_are_the_optimum_of_the_hinge_loss() -> None:
    """No step in a random direction lowers the loss; the problem is convex, so that is the least there is."""
    rng = np.random.default_rng(0)
    gaps_PK, margins_P = rng.normal(size=(60, 4)) + 0.4, rng.normal(size=60) * 0.3

    def loss(weights_K: Any) -> float:
        hinge = np.maximum(0, 1 - margins_P - gaps_PK @ weights_K)
        return float(hinge.mean() + 0.01 * np.abs(weights_K).sum())

    weights_K = hinge_weights(gaps_PK, margins_P)
    near = [loss(weights_K + size * rng.normal(size=4)) for size in (1e-4, 1e-2, 1.0) for _ in range(200)]
    assert len(near) == 600
    assert min(near) >= loss(weights_K) - 1e-12
    assert loss(weights_K) < loss(np.zeros(4)) - 0.1


def test_one_pair_by_hand() -> None:
    """max(0, 1 - w) + .01 |w| is least at w = 1; with another reward of .4 between the two, at .6."""
    assert hinge_weights(np.array([[1.0]]), np.array([0.0])) == pytest.approx([1.0])
    assert hinge_weights(np.array([[1.0]]), np.array([0.4])) == pytest.approx([0.6])
    assert hinge_weights(np.array([[0.5]]), np.array([0.0])) == pytest.approx([2.0])


def test_accuracy_on_prompts_left_out_is_lower_where_the_fit_learned_noise() -> None:
    """Grades that have nothing to do with the rules: the fit follows them, prompts left out do not."""
    rng = np.random.default_rng(1)
    rows = [row._replace(grade=float(rng.integers(0, 3))) for row in graded(40)]
    found = fit(rules(), rows, score_item)
    assert found.left_out is not None
    assert found.left_out.low < 0.5
    assert found.left_out.value <= found.fitted.value + 0.05


def test_what_a_reward_model_gives_already_needs_no_weight() -> None:
    rows = [row._replace(reward=row.grade) for row in graded()]
    assert [rule.weight for rule in fit(rules(), rows, score_item).rules.rules] == [0, 0, 0, 0]


def test_answers_that_a_rule_cannot_score_are_left_out_and_counted() -> None:
    found = fit(rules(), [*graded(), GradedAnswer((Message("user", "Question 1?"),), "", 0.0)], score_item)
    assert found.unscored == 1
    with pytest.raises(DataError, match="no prompt has two of different grades"):
        fit(rules(), graded(3, {"It is 4.": 2, "4": 2}), score_item)


# ---- files


def write(folder: Path, rows: list[dict[str, Any]] | None = None) -> tuple[Path, Path]:
    (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
    names = {0: "bad", 1: "less good", 2: "ideal"}
    some = rows or [
        {"prompt": r.prompt[0].content, "completion": r.answer, "grade": names[int(r.grade)]}
        for r in graded()
    ]
    (folder / "graded.jsonl").write_text("\n".join(map(json.dumps, some)))
    return folder / "rules.yaml", folder / "graded.jsonl"


def test_the_verb_writes_weights_that_a_reward_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, answers = write(tmp_path)
    assert main(["data", "fit-rules", str(path), str(answers), "--out", str(tmp_path / "fitted.yaml")]) == 0
    said = capsys.readouterr().out
    assert "on prompts left out of the fit: 100.0% (72.2 to 100.0) of 110 pairs of 10 prompts" in said
    fitted = reward_rules.read(tmp_path / "fitted.yaml")
    assert [rule.weight for rule in fitted.rules] == pytest.approx([1.0, 1.0, 0.0, 0.0], abs=1e-6)
    assert reward_rules.read(path).rules[1].weight == 7.0
    assert main(["data", "fit-rules", str(path), str(answers)]) == 0
    assert reward_rules.read(path) == fitted
    assert path.read_text().startswith(
        "# Weights fitted by `demeanor data fit-rules` on 110 pairs of 10 prompts."
    )


def test_what_is_written_is_read_back_whole(tmp_path: Path) -> None:
    found = fit(rules(), graded(), score_item)
    write_rules(tmp_path / "r.yaml", found)
    assert reward_rules.read(tmp_path / "r.yaml") == found.rules


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": "a", "completion": "b", "grade": "good"},
            r"graded\.jsonl:1.*grade: got 'good', wanted bad, less good",
        ),
        ({"prompt": "a", "completion": "b"}, r"graded\.jsonl:1.*grade: got None"),
        (
            {"prompt": "a", "completion": "b", "grade": 1, "reward": "x"},
            r"graded\.jsonl:1: reward: got 'x', wanted a number",
        ),
        ({"prompt": "", "completion": "b", "grade": 1}, r"graded\.jsonl:1: prompt: is empty"),
        ({"prompt": "a", "grade": 1}, r"graded\.jsonl:1.*wanted the columns prompt, completion and grade"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    _, answers = write(tmp_path, [row])
    with pytest.raises(DataError, match=told):
        read_graded(answers)


def test_a_rule_with_a_mistake_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, answers = write(tmp_path)
    (tmp_path / "wrong.yaml").write_text("rules: [{name: a, scorer: nothing}]")
    assert main(["data", "fit-rules", str(tmp_path / "wrong.yaml"), str(answers)]) == 2
    assert "rule a: unknown scorer kind 'nothing'" in capsys.readouterr().err
