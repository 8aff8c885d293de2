"""What is printed and written: a page from whatever lies in the folder, and a clear sentence for what does not belong on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Verdict
from demeanor.evaluation import gate
from demeanor.evaluation.result import Result, save
from demeanor.report import publish
from demeanor.report.picture import picture

FINDING = gate.Finding("superiority", "jail_break", Verdict.PASS, 0.8, 0.7, 0.9, 0.0, 36, 12, None)
OPEN = replace(FINDING, kind="non_inferiority", verdict=Verdict.INCONCLUSIVE, needed=14, items=("a-1", "a-2"))


def record(**changes: Any) -> dict[str, Any]:
    tree = {
        "verdict": "inconclusive",
        "candidate": "desk",
        "against": "desk-policy",
        "hashes": {"suite": "s", "candidate": "k"},
        "findings": [FINDING, OPEN],
        "signature": None,
    }
    return tree | changes


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def measured(result: Result, folder: Path) -> Result:
    """The result of stack k on suite s, saved."""
    found = replace(result, name="x", suite_hash="s", settings={"stack key": "k"})
    found.save(folder / "x.json")
    return found


def test_a_gate_without_an_earlier_eval_writes_a_page_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path, "x", "gate", record())
    publish.show_section(tmp_path, "x", "gate")
    told = said(capsys)
    assert "Not enough data to ship. 1 of 2 rules hold; not decided: non inferiority on jail break" in told
    assert "At fault, non inferiority on jail break: a-1, a-2." in told
    assert f"written: {tmp_path / 'x'}.gate.json" in told
    assert (
        f"page: {tmp_path / 'x'}.html; to add what each layer did: demeanor eval STACK.yaml --name x" in told
    )
    page = (tmp_path / "x.html").read_text()
    assert "<h1>Not enough data to ship: desk against desk-policy.</h1>" in page
    assert 'id="gate"' in page
    assert (tmp_path / "x.md").read_text().startswith("# Not enough data to ship")


def test_with_an_earlier_eval_the_decision_stands_on_its_page(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(result, tmp_path)
    save(tmp_path, "x", "gate", record())
    publish.show_section(tmp_path, "x", "gate")
    assert said(capsys).endswith(f"page: {tmp_path / 'x'}.html")
    page = (tmp_path / "x.html").read_text()
    assert (
        page.index('<section id="ladder">')
        < page.index('<section id="gate">')
        < page.index('<section id="items">')
    )


def test_what_was_measured_on_another_stack_is_left_out_and_named(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(result, tmp_path)
    save(tmp_path, "x", "gate", record(hashes={"suite": "s", "candidate": "another"}))
    publish.refresh(tmp_path, "x")
    assert "without x.gate.json: measured on other items or another stack" in said(capsys)
    assert 'id="gate"' not in (tmp_path / "x.html").read_text()


def test_a_file_that_cannot_be_read_is_one_sentence_and_the_page_is_written_without_it(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(result, tmp_path)
    for kind, tree in (("gate", record(findings=[{}])), ("seeds", {"suite_hash": "s"})):
        save(tmp_path, "x", kind, tree)
    publish.show(found, tmp_path)
    told = said(capsys)
    for kind in ("gate", "seeds"):
        assert f"x.{kind}.json: not a result of this version of demeanor" in told
        with pytest.raises(DataError, match="measure again"):
            publish.show_section(tmp_path, "x", kind)
    (tmp_path / "x.seeds.json").write_text(json.dumps({"suite_hash": "s"}))
    with pytest.raises(DataError, match=r"format 1, wanted 2\); measure again: demeanor seeds"):
        publish.show_section(tmp_path, "x", "seeds")
    assert (tmp_path / "x.html").is_file()


def test_the_picture_has_room_for_the_longest_name(result: Result) -> None:
    longest = "a_behavior_with_a_name_of_forty_letters__"
    axes = (replace(result.axes[0], name=longest), *result.axes[1:])
    widths = [
        float(picture(replace(result, axes=one)).split('viewBox="0 0 ')[1].split()[0])
        for one in (result.axes, axes)
    ]
    assert widths[1] - widths[0] > 100
