"""An experiment on a scripted runtime: it is closed whatever happens, names its files, and measures variants and other servers alike."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor.app import load_stack
from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.types import Done, Event, Respond, Text, Turn
from demeanor.evaluation.experiment import Experiment
from demeanor.evaluation.external import ExternalModel
from demeanor.evaluation.result import load_tree, plain, save
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.statistics import Estimate
from demeanor.stack.stack import Stack


def saying(text: str) -> Respond:
    async def respond(turn: Turn) -> AsyncIterator[Event]:
        yield Text(text)
        yield Done("stop")

    return respond


@dataclass
class Scripted:
    """A runtime whose variants say their model id."""

    stack: Stack
    warmed: set[str] = field(default_factory=set)
    closed: int = 0
    tool_set = None
    num_generations = num_confirmed = 0

    def respond(self, variant: Stack) -> Respond:
        return saying(variant.model_id.replace(":", ""))

    def warm(self, stages: set[str]) -> None:
        self.warmed |= stages

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    items = [
        {
            "id": f"{axis}-{n}",
            "messages": [{"role": "user", "content": f"Who {axis} {n}?"}],
            "scorer": "exact",
            "target": {"answers": ["desk"]},
            "axis": axis,
            "cluster": f"c{n}",
        }
        for axis in ("a", "b")
        for n in range(3)
    ]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    tree: dict[str, Any] = {
        "name": "desk",
        "weights": {"base": {"kind": "remote", "url": "http://127.0.0.1:9/v1", "model": "m"}},
        "layers": [{"kind": "prompt", "text": "Be good."}],
        "evaluation": {"suites": ["suite.jsonl"]},
    }
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(tree))
    return load_stack(tmp_path / "stack.yaml")


def services(runtime: Scripted) -> Services:
    return Services(
        open=lambda stack: runtime,  # type: ignore[arg-type,return-value]
        connect=lambda url, model, **_: saying("desk"),
        train=lambda stack, stages: None,
        is_trained=lambda stack, stage: True,
        training_curves=lambda stack: {},
        rated_turns=lambda path: [],
    )


def test_variants_and_other_servers_are_measured_on_the_same_items_and_kept(
    stack: Stack, tmp_path: Path
) -> None:
    runtime, folder = Scripted(stack), tmp_path / "results"
    with Experiment(stack, services(runtime), folder, limit=2) as experiment:
        rows = experiment.measure(
            [stack.resolve("desk"), stack.resolve("desk:base")],
            [ExternalModel("other", "http://x/v1", "big")],
        )
    assert (experiment.name, experiment.out) == ("desk.first2", folder / "desk.first2.rows.jsonl")
    assert [(row.variant, row.item_id) for row in rows[:4]] == [
        ("desk", "a-0"),
        ("desk", "a-1"),
        ("desk", "b-0"),
        ("desk", "b-1"),
    ]
    assert {row.variant: row.value for row in rows} == {"desk": 1.0, "desk:base": 0.0, "other": 1.0}
    assert (runtime.warmed, runtime.closed) == ({"base"}, 1)
    with Experiment(stack, services(Scripted(stack)), folder, limit=2) as again:
        again.measure([stack.resolve("desk")])
    assert again.reused == 4


def test_the_runtime_is_closed_where_an_analysis_fails(stack: Stack, tmp_path: Path) -> None:
    runtime = Scripted(stack)
    with (
        pytest.raises(KeyError),
        Experiment(stack, services(runtime), tmp_path, kind="diagnosis") as experiment,
    ):
        raise KeyError
    assert runtime.closed == 1
    assert experiment.out == tmp_path / "desk.diagnosis.rows.jsonl"


def test_a_result_is_saved_with_its_format_and_one_of_another_format_is_refused(tmp_path: Path) -> None:
    path = save(
        tmp_path, "x", "judge", {"accuracy": Estimate(0.5, None, float("nan"), None, None, 2, 1)}, more=1
    )
    tree = load_tree(path)
    assert (tree["format"], tree["more"], tree["accuracy"]["value"], tree["accuracy"]["high"]) == (
        2,
        1,
        0.5,
        None,
    )
    (tmp_path / "x.attribution.json").write_text('{"name": "x"}')
    with pytest.raises(DataError, match=r"format 1, wanted 2\); measure again: demeanor attribute \.\.\."):
        load_tree(tmp_path / "x.attribution.json")


def test_named_tuples_and_dataclasses_become_mappings_inside_lists_too() -> None:
    model = ExternalModel("a", "u", "m")
    assert plain([(model, 1)]) == [[{"name": "a", "url": "u", "model": "m", "key": None}, 1]]


def test_one_process_at_a_time_writes_the_rows_of_a_name(stack: Stack, tmp_path: Path) -> None:
    given = services(Scripted(stack))
    code = (
        "import sys; from pathlib import Path; from demeanor.core.files import lock; p = Path(sys.argv[1]); "
        "held = lock(p, p, ''); print('held', flush=True); sys.stdin.read()"
    )
    rows = tmp_path / "check.rows.jsonl"
    argv = [sys.executable, "-c", code, str(rows.with_suffix(".lock"))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        told = rf"check\.rows\.jsonl: process {other.pid} on .* is writing these rows; wait for it, or give another"
        with pytest.raises(DemeanorError, match=told) as caught:
            Experiment(stack, given, tmp_path, name="check", limit=1)
        assert caught.value.exit_code == 3
        Experiment(stack, given, tmp_path, name="another", limit=1).close()
        other.kill()
    with Experiment(stack, given, tmp_path, name="check", limit=1):
        Experiment(stack, given, tmp_path, name="check", limit=1).close()  # this process shares it
        assert rows.with_suffix(".lock").exists()
    assert not list(tmp_path.glob("*.lock"))
