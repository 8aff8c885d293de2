"""`train --check-rewards`: what is built before training, what is left out and named, exit codes, mistakes at load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor import app
from demeanor.cli import main
from demeanor.core.errors import SpecError
from demeanor.core.types import Verdict
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.app import tiny
from tests.conftest import each

WORLD = {"source": "world:behaviour", "items": True, "axes": ["facts", "arithmetic"]}


def write(folder: Path, *stages: dict[str, Any]) -> Path:
    """The tiny stack with online stages."""
    path = tiny.write(folder)
    spec = yaml.safe_load(path.read_text())
    for stage in stages:
        spec["weights"]["stages"].append({"objective": "grpo", "parent": "sft", "steps": 1, **stage})
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def online(reward: Any, name: str = "rl", prompts: Any = WORLD) -> dict[str, Any]:
    return {"name": name, "prompts": [prompts], "reward": reward}


def arithmetic(path: Path, count: int = 80) -> dict[str, Any]:
    """A suite of sums whose answers are exact numbers: `gold or other` reads as the other one."""
    lines = [
        {
            "id": f"sum-{n}",
            "messages": [{"role": "user", "content": f"What is {n} plus 1000?"}],
            "scorer": "number",
            "target": {"value": n + 1000},
            "axis": "sums",
            "cluster": f"sum-{n}",
        }
        for n in range(1, count + 1)
    ]
    (path / "sums.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {"source": "sums.jsonl", "items": True}


def test_a_verifier_is_checked_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(
        tmp_path, online([{"kind": "item"}, {"kind": "length", "free": 9}], prompts=arithmetic(tmp_path))
    )
    code = main(["train", str(path), "--check-rewards", "--runs", str(tmp_path / "runs")])
    said = capsys.readouterr().out
    assert code == 0
    assert "length is not checked: it counts tokens, and the base is not trained yet" in said
    assert "rl: PASS" in said
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_a_hackable_reward_ends_with_1_and_few_prompts_with_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hackable = [{"kind": "scorer", "scorer": "absence", "target": {"secrets": ["blue"]}}]
    path = write(tmp_path, online(hackable), online(["item"], "few", arithmetic(tmp_path, 20)))
    runs = ["--runs", str(tmp_path / "runs")]
    assert main(["train", str(path), "--check-rewards", "--stage", "rl", *runs]) == 1
    assert "`empty`" in capsys.readouterr().out
    assert main(["train", str(path), "--check-rewards", "--stage", "few", *runs]) == 4
    assert "20 prompts are too few" in capsys.readouterr().out
    assert main(["train", str(path), "--check-rewards", *runs]) == 1


def test_a_reward_model_and_lengths_are_checked_where_they_are_trained(trained: tuple[Stack, Runs]) -> None:
    """The tiny reward model knows little: what matters is that it read every answer, gold by gold."""
    stack, runs = trained
    terms = [
        {"kind": "model", "stages": ["rm"], "normalise": "reference"},
        {"kind": "length", "free": 3, "weight": 0.5},
    ]
    path = write(stack.root, online(terms, prompts={"source": "world:instructions", "limit": 40}))
    (found,) = app.check_rewards(app.load_stack(path), runs)
    tiny.write(stack.root)
    assert [term.name for term in found.terms] == ["reward", "model", "length"]
    by_name = {probe.probe: probe for probe in found.terms[1].probes}
    assert by_name["gold"].mean == pytest.approx(0.0, abs=1e-6)  # normalised on them
    assert by_name["gold"].n > 20
    assert by_name["gold"].unscored == 0
    assert by_name["repeat"].mean is not None
    lengths = {probe.probe: probe.mean for probe in found.terms[2].probes}
    assert lengths["empty"] == 0
    assert lengths["repeat"] is not None
    assert lengths["repeat"] < -5
    assert any("normalised here on" in note for note in found.notes)


def test_what_is_not_trained_yet_is_named_and_nothing_is_decided(tmp_path: Path) -> None:
    path = write(tmp_path, online([{"kind": "model", "stages": ["rm"]}]))
    (found,) = app.check_rewards(app.load_stack(path), Runs(tmp_path / "runs"))
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.notes == (
        f"model is not checked: rm is not trained yet; run demeanor train {path} --stage rm",
    )


def test_every_axis_of_the_prompts_is_tried(tmp_path: Path) -> None:
    axes = ["facts", "unsafe", "safe_twin"]
    path = write(tmp_path, online(["item"], prompts={**WORLD, "axes": axes}))
    (found,) = app.check_rewards(app.load_stack(path), Runs(tmp_path / "runs"))
    (echo,) = [probe for probe in found.terms[1].probes if probe.probe == "echo"]
    assert set(echo.axes) == set(axes)
    assert (
        echo.axes["safe_twin"].times == echo.axes["safe_twin"].n
    )  # anything but a refusal is accepted there
    assert echo.axes["unsafe"].times == 0
    assert any("worst: safe_twin" in text for text in each(found.problems))


def test_a_stack_without_an_online_stage_says_what_one_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tiny.write(tmp_path)), "--check-rewards"]) == 2
    assert "no stage has a reward; wanted an online stage" in capsys.readouterr().err
    path = write(tmp_path, online(["item"]))
    assert main(["train", str(path), "--check-rewards", "--stage", "r1"]) == 2
    assert "unknown online stage 'r1'. Did you mean 'rl'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ({"kind": "scorer", "scorer": "numbr"}, r"reward\[1\]: unknown scorer kind 'numbr'"),
        ({"kind": "scorer", "scorer": "number"}, r"reward\[1\]: target of scorer number: value: "),
        ({"kind": "model", "stages": ["rm", "rm"]}, r"reward\[1\]\.stages: names a stage twice"),
        ({"kind": "judge"}, r"reward\[1\]: the stack declares no judge; set evaluation\.judge"),
    ],
)
def test_a_mistake_in_a_term_is_found_when_the_stack_is_loaded(tmp_path: Path, term: Any, told: str) -> None:
    path = write(tmp_path, online(["item", term]))
    with pytest.raises(SpecError, match=rf"stack\.yaml: weights\.stages\[3\]\.{told}"):
        app.load_stack(path)


def test_a_mistake_in_a_rule_or_a_cost_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"rules": [{"name": "a", "scorer": "nothing"}]}))
    stage = online(["item", {"kind": "rules", "rules": "rules.yaml"}])
    stage["cost"] = {"terms": [{"kind": "scorer", "scorer": "nobody"}]}
    with pytest.raises(SpecError) as caught:
        app.load_stack(write(tmp_path, stage))
    places = [problem.where.rpartition(": ")[2] for problem in caught.value.problems]
    assert places == ["weights.stages[3].reward[1]", "weights.stages[3].cost.terms[0]"]
