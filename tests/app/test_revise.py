"""`data revise` through the command line: a trained variant answers, rows are written, mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.cli import main
from demeanor.core.errors import EngineError
from demeanor.core.types import Message
from demeanor.evaluation.judge import JudgeClient, follows
from demeanor.stack.schema import JudgeSpec
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.evaluation.scripted_judge import Scripted


def words(trained: tuple[Stack, Runs], *more: str) -> list[str]:
    stack, runs = trained
    return ["data", "revise", str(stack.path), *more, "--model", "tiny-desk:sft", "--runs", str(runs.root)]


def test_a_trained_variant_writes_rows_and_goes_on_where_it_stopped(
    trained: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    given = ["world:exercises", str(out), "--items", "--axis", "unsafe", "--limit", "3"]
    code = main(words(trained, *given))
    said = capsys.readouterr()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert f"written: {len(rows)} rows" in said.out
    assert code == (0 if len(rows) == 3 else 3)  # a tiny model may answer with nothing, which is told
    assert {(row["made_by"]["model"], len(row["revisions"])) for row in rows} == {("tiny-desk:sft", 1)}
    assert main(words(trained, *given)) == code
    assert f"{len(rows)} answers were there already" in capsys.readouterr().out
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows


def test_what_cannot_be_done_ends_with_2(
    trained: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("mine\n")
    cases: list[tuple[list[str], str]] = [
        (["world:instructions", str(out)], "exists; name another file, or overwrite it with --force"),
        (["world:instructions", str(tmp_path / "a"), "--judged"], "--judged: wanted --deliberate SPEC.md"),
        (["world:instructions", str(tmp_path / "a"), "--axis", "x"], "--axis: is for suites"),
        (["world:exercises", str(tmp_path / "a"), "--items", "--axis", "x"], "unknown axis 'x'"),
    ]
    for given, told in cases:
        assert main(words(trained, *given)) == 2
        assert told in capsys.readouterr().err
    assert out.read_text() == "mine\n"


async def asked(tmp_path: Path, says: Any) -> tuple[Scripted, bool]:
    respond = Scripted(says)
    judge = JudgeClient(JudgeSpec(url="http://127.0.0.1:9/v1", model="big"), respond, tmp_path / "v.jsonl")
    return respond, await follows(judge, "Rule 7: be brief.", (Message("user", "Hello?"),), "Yes.")


async def test_the_judge_reads_the_specification_and_its_verdict_counts(tmp_path: Path) -> None:
    respond, found = await asked(tmp_path, lambda text: "It is.\nVerdict: yes")
    assert found is True
    assert "Rule 7: be brief." in respond.turns[0].messages[-1].content
    assert (await asked(tmp_path / "no", lambda text: "Verdict: no"))[1] is False
    with pytest.raises(EngineError, match="no verdict that can be read"):
        await asked(tmp_path / "none", lambda text: "Hm.")
