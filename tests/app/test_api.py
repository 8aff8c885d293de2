"""`import demeanor` as a notebook would use it: load, train, ask, stream, evaluate, attribute, gate."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import demeanor
from demeanor.core.types import Done, Text, Verdict
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs

RULES = """
non_inferiority:
- {axis: facts, margin: 0.1}
"""


@pytest.fixture
def place(trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return trained[0].path


def test_everything_that_the_package_promises_is_there() -> None:
    assert all(hasattr(demeanor, name) for name in demeanor.__all__)
    assert set(demeanor.__all__) >= {"load", "train", "assistant", "evaluate", "attribute", "gate"}


def test_importing_the_package_does_not_wait_for_torch() -> None:
    code = "import sys, demeanor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stack_is_loaded_trained_and_asked(trained: tuple[Stack, Runs], place: Path) -> None:
    stack = demeanor.load(place, "decoding.max_tokens=6")
    demeanor.train(stack, runs=trained[1].root)  # finished weights are found
    with demeanor.assistant(stack, runs=trained[1].root) as desk:
        answer = desk.ask("When to Corkel?")
        assert answer.finish_reason in ("stop", "length")
        assert answer.completion_tokens <= 6
        assert desk.ask([{"role": "user", "content": "When to Corkel?"}]).text == answer.text
        events = list(desk.stream("When to Corkel?"))
        assert isinstance(events[-1], Done)
        assert "".join(desk.text("When to Corkel?")) == "".join(e.text for e in events if isinstance(e, Text))
        assert desk.ask("When to Corkel?", max_tokens=1).completion_tokens == 1
        with pytest.raises(demeanor.DemeanorError, match="Did you mean 'temperature'"):
            desk.ask("x", temprature=0)
    with demeanor.assistant(stack, "tiny-desk:base", runs=trained[1].root) as base:
        assert base.variant.serve == "base"


def test_mistakes_are_the_errors_of_the_command_line(place: Path) -> None:
    with pytest.raises(demeanor.DemeanorError, match="Did you mean 'temperature'"):
        demeanor.load(place, "decoding.temprature=0")
    with (
        pytest.raises(demeanor.DemeanorError, match="demeanor train"),
        demeanor.assistant(demeanor.load(place), runs="nowhere"),
    ):
        pass


def test_it_is_measured_attributed_and_gated(
    trained: tuple[Stack, Runs], place: Path, tmp_path: Path
) -> None:
    stack, runs = demeanor.load(place, "evaluation.suites=[world:behaviour]"), trained[1].root
    result = demeanor.evaluate(stack, variants=["tiny-desk:sft", "tiny-desk"], limit=1, runs=runs)
    table = str(result.table())
    assert table.splitlines()[0].split()[:3] == ["axis", "sft", "+whole"] or "axis" in table
    assert len(table.splitlines()) == len(result.axes) + 1
    found = demeanor.attribute(stack, weights=["sft", "dpo"], layers=["prompt"], limit=1, runs=runs)
    assert {effect.name for effect in found.shapley} == {"dpo", "prompt"}
    (tmp_path / "gate.yaml").write_text(RULES)
    report = demeanor.gate(stack, "tiny-desk:sft", tmp_path / "gate.yaml", limit=1, runs=runs)
    assert isinstance(report.verdict, Verdict)
    assert (tmp_path / "results" / "tiny-desk.first1.json").is_file()


def test_it_works_where_an_event_loop_runs_already_as_in_a_notebook(
    trained: tuple[Stack, Runs], place: Path
) -> None:
    async def cell() -> str:
        stack = demeanor.load(place, "evaluation.suites=[world:behaviour]")
        demeanor.evaluate(stack, variants=["tiny-desk"], limit=1, name="cell", runs=trained[1].root)
        with demeanor.assistant(stack, runs=trained[1].root) as desk:
            return desk.ask("When to Corkel?").text

    assert isinstance(asyncio.run(cell()), str)
