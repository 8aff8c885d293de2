"""Every verb that measures scores judged items with the judge of the stack, and none asks twice for what another has asked."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor import app
from demeanor.app import load_stack
from demeanor.cli import main
from demeanor.core.errors import EngineError
from demeanor.core.types import Respond
from demeanor.evaluation.diagnosis import diagnose
from demeanor.evaluation.diagnosis.replay import ReplayHarness
from demeanor.evaluation.experiment import Experiment
from demeanor.evaluation.result_rows import read_rows
from demeanor.training.runs import Runs
from tests.evaluation.scripted_judge import Scripted
from tests.server.live import served
from tests.server.scripted import Scripted as Desk

MARK = "You are a judge"
ITEMS = 8


def reply(text: str) -> str:
    """As judge: yes where the answer says good. As assistant: behind the prompt good, but for one question in four."""
    if MARK in text:
        return f"Verdict: {'yes' if 'good' in text.split('<answer ')[-1].split('</answer')[0] else 'no'}"
    number = int(text.split("Question ")[1].split()[0])
    return (
        f"good {number}" if "Be good" in text and (number % 4 or "step by step" in text) else f"bad {number}"
    )


class Both(Desk):
    """A server whose model is assistant and judge."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Scripted(reply)

    def respond(self, model_id: str) -> Respond:
        return self.model

    @property
    def verdicts(self) -> int:
        return sum(MARK in t.messages[0].content for t in self.model.turns)


def written(folder: Path, address: str, *, judge: bool = True, twins: bool = False) -> Path:
    items = [
        {
            "id": f"i{n}",
            "messages": [{"role": "user", "content": f"Question {n} "}],
            "scorer": "judged",
            "target": {"question": "Is it good?"},
            "axis": "manners",
            "cluster": f"c{n}",
        }
        for n in range(ITEMS)
    ]
    items += (
        [
            {
                **items[0],
                "id": axis,
                "messages": [{"role": "user", "content": f"Question {n} "}],
                "axis": axis,
                "cluster": axis,
                "twin": twin,
            }
            for n, axis, twin in ((9, "safe_twin", "unsafe"), (10, "unsafe", "safe_twin"))
        ]
        if twins
        else []
    )
    (folder / "suite.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    (folder / "gate.yaml").write_text("non_inferiority:\n- {axis: manners, margin: 0.5}\n")
    who = {"url": f"{address}/v1", "model": "harbour-desk"}
    tree: dict[str, Any] = {
        "name": "desk",
        "decoding": {"temperature": 0},
        "layers": [{"kind": "prompt", "text": "Be good."}],
        "weights": {"base": {"kind": "remote", **who}},
        "evaluation": {"suites": ["suite.jsonl"], **({"judge": who} if judge else {})},
    }
    (folder / "stack.yaml").write_text(yaml.safe_dump(tree))
    return folder / "stack.yaml"


def test_attribute_frontier_gate_and_diagnose_use_the_judge_and_share_its_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, out = Both(), tmp_path / "results"
    with served(server) as address:
        path, asked = written(tmp_path, address, twins=True), 2 * (ITEMS + 2) - 2
        common = [str(path), "--results", str(out)]
        assert main(["attribute", *common]) == 0
        assert server.verdicts == asked, "two cells; two answers are bad in both and judged once"
        assert main(["frontier", *common]) == 0
        assert main(["gate", *common, "--against", "desk:base", "--rules", str(tmp_path / "gate.yaml")]) in (
            0,
            1,
            4,
        )
        assert server.verdicts == asked, "what attribute asked, frontier and gate do not ask again"
        capsys.readouterr()
        assert main(["diagnose", *common]) == 0
    said = capsys.readouterr()
    read = {
        kind: json.loads((out / f"desk.{kind}.json").read_text())
        for kind in ("attribution", "frontier", "gate", "diagnosis")
    }
    (prompt,) = [
        e for e in read["attribution"]["shapley"] if e["name"] == "prompt" and e["axis"] == "manners"
    ]
    assert prompt["value"] == pytest.approx(6 / 8)
    capability = {p["label"]: p["capability"]["value"] for p in read["frontier"]["points"]}
    assert sorted(capability.values())[0] == 0
    assert max(capability.values()) == pytest.approx(6 / 8)
    (rule,) = read["gate"]["findings"]
    assert rule["value"] == pytest.approx(6 / 8)
    found = read["diagnosis"]
    assert (found["failing"], found["wrong"], found["judged"]) == (
        2,
        ["i0", "i4"],
        "by the scorers of the items, and harbour-desk where they need a judge",
    )
    replayed = read_rows(out / "desk.diagnosis.rows.jsonl")
    assert replayed
    assert all(row.value == float("good" in row.text) for row in replayed), "every replay was judged"
    assert "verdicts of harbour-desk" in said.err
    assert not (out / "desk.diagnosis.verdicts.jsonl").exists()


def test_without_a_judge_a_diagnosis_has_nothing_to_say_of_judged_items(tmp_path: Path) -> None:
    server, out = Both(), tmp_path / "results"
    with served(server) as address:
        path = written(tmp_path, address, judge=False)
        assert main(["diagnose", str(path), "--results", str(out)]) == 0
    assert json.loads((out / "desk.diagnosis.json").read_text())["failing"] == 0
    assert {row.value for row in read_rows(out / "desk.diagnosis.rows.jsonl")} == {None}
    assert server.verdicts == 0


def test_rows_of_an_earlier_judge_are_judged_anew_before_they_are_diagnosed(tmp_path: Path) -> None:
    server, out = Both(), tmp_path / "results"
    with served(server) as address:
        stack = load_stack(written(tmp_path, address))
        assert main(["eval", str(stack.path), "--results", str(out), "--variants", "desk"]) == 0
        lines = [json.loads(line) for line in (out / "desk.rows.jsonl").read_text().splitlines()]
        (out / "desk.rows.jsonl").write_text(
            "".join(json.dumps({**line, "value": 1.0 - line["value"]}) + "\n" for line in lines)
        )
        before = server.verdicts
        services = app.services(Runs(tmp_path / "runs"))
        with Experiment(stack, services, out, kind="diagnosis") as experiment:
            scope = diagnose.Scope(rows=out / "desk.rows.jsonl")
            found = asyncio.run(diagnose.cases_of_suite(ReplayHarness(experiment), scope))
    assert [item.id for item in found.failing] == ["i0", "i4"]
    assert server.verdicts == before


def test_a_judge_that_is_away_leaves_items_out_of_the_diagnosis_and_the_next_one_asks_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server, out = Both(), tmp_path / "results"

    def broken(text: str) -> str:
        if MARK in text:
            raise EngineError("the judge is away")
        return reply(text)

    with served(server) as address:
        command = [
            "diagnose",
            str(written(tmp_path, address)),
            "--results",
            str(out),
            "--set",
            "evaluation.judge.retries=0",
        ]
        server.model.says = broken
        assert main(command) == 3
        told = capsys.readouterr()
        assert f"{ITEMS} FAILED and unscored" in told.err
        assert f"{ITEMS} verdicts of the judge FAILED" in told.out
        assert json.loads((out / "desk.diagnosis.json").read_text())["failing"] == 0
        server.model.says = reply
        assert main(command) == 0
    assert json.loads((out / "desk.diagnosis.json").read_text())["failing"] == 2


@pytest.mark.parametrize("kind", ["", "diagnosis", "base"])
def test_verdicts_of_all_interventions_lie_where_eval_keeps_them(kind: str, tmp_path: Path) -> None:
    stack = load_stack(written(tmp_path, "http://127.0.0.1:9"))
    with Experiment(stack, app.services(Runs(tmp_path / "runs")), tmp_path, kind=kind) as experiment:
        assert experiment.judge is not None
        assert experiment.judge.path == tmp_path / "desk.verdicts.jsonl"


def test_the_gate_hears_one_judge_about_an_earlier_result_and_this_one(tmp_path: Path) -> None:
    server, out = Both(), tmp_path / "results"
    with served(server) as address:
        common = [str(written(tmp_path, address)), "--results", str(out)]
        assert main(["eval", *common, "--variants", "desk:base", "desk", "--name", "old"]) == 0
        lines = [json.loads(line) for line in (out / "old.rows.jsonl").read_text().splitlines()]
        (out / "old.rows.jsonl").write_text(
            "".join(json.dumps({**line, "value": 1.0 - line["value"]}) + "\n" for line in lines)
        )
        assert main(
            ["gate", *common, "--against", str(out / "old.json"), "--rules", str(tmp_path / "gate.yaml")]
        ) in (0, 1, 4)
    (rule,) = json.loads((out / "desk.gate.json").read_text())["findings"]
    assert rule["value"] == 0, (
        "the same answers, so the same verdicts, whatever another judge had said of them"
    )
