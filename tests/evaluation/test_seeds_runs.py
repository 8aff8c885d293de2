"""A stack trained with two seeds: other weights, the same items; run again it trains nothing; the page says what holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from demeanor.app import load_stack, services
from demeanor.core.errors import DemeanorError
from demeanor.evaluation import ladder, seeds
from demeanor.evaluation import result as results
from demeanor.report import outputs, publish
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs


def test_another_seed_is_another_training_of_every_stage(trained: tuple[Stack, Runs]) -> None:
    stack, _ = trained
    load = partial(load_stack, stack.path)
    other = seeds.reseeded(load, 5)
    names = ["base", *(s.name for s in stack.spec.weights.stages)]
    assert all(other.stage_key(n) != stack.stage_key(n) for n in names)
    assert seeds.reseeded(load, 0).key() == stack.key()


def test_two_seeds_are_trained_measured_and_told(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    found = seeds.run(
        partial(load_stack, stack.path), services(runs), tmp_path, chosen=[0, 1], limit=2, name="f"
    )
    capsys.readouterr()
    assert found.seeds == (0, 1)
    assert all(len(s.values) == 2 for s in found.steps)
    again = seeds.run(
        partial(load_stack, stack.path), services(runs), tmp_path, chosen=[0, 1], limit=2, name="f"
    )
    assert again == found
    assert "steps in" not in capsys.readouterr().err  # nothing was trained again
    outputs.show(seeds.section(found), outputs.console())
    assert "hold over seeds and items" in " ".join(capsys.readouterr().out.split())
    ladder.evaluate(stack, services(runs), tmp_path, variants=None, limit=2, name="f")
    assert "Trained with other seeds" in publish.show(results.load(tmp_path / "f.json"), tmp_path).read_text()


def test_one_seed_or_one_twice_is_refused(tmp_path: Path, trained: tuple[Stack, Runs]) -> None:
    for chosen in ([1], [1, 1]):
        with pytest.raises(DemeanorError, match="wanted two or more, each once"):
            seeds.run(
                partial(load_stack, trained[0].path),
                services(trained[1]),
                tmp_path,
                chosen=chosen,
                limit=1,
                name="f",
            )
