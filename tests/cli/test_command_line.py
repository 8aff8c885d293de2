"""The command line: mistakes are told in one text with the code that the docs promise, and of `gate` never with the code of a verdict."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from demeanor.cli import arguments, gate, main
from demeanor.evaluation import result as results
from demeanor.report import publish

DEMO = "stacks/demo/demo.yaml"


@pytest.mark.parametrize("text", ["0", "-3", "x", "", "1.5", "²"])
def test_a_count_is_at_least_one(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="wanted a number of at least 1"):
        arguments.count(text)
    assert arguments.count("7") == 7


@pytest.mark.parametrize("text", ["../evil", "a/b", "", ".hidden", "a\\b", "/tmp/x"])
def test_no_name_writes_outside_the_folder_of_results(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="wanted a name for files"):
        arguments.name(text)
    assert arguments.name("desk 2.new") == "desk 2.new"


@pytest.mark.parametrize("verb", ["eval", "attribute", "frontier", "diagnose", "duel", "seeds", "gate"])
def test_every_verb_that_measures_refuses_a_limit_of_nothing_and_a_name_with_a_slash(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for wrong in (["--limit", "0"], ["--name", "../x"]):
        with pytest.raises(SystemExit) as stop:
            main([verb, DEMO, *wrong])
        assert stop.value.code == (gate.MISTAKE if verb == "gate" else 2)
        assert wrong[0] in capsys.readouterr().err


def test_an_unknown_option_of_gate_is_not_read_as_inconclusive() -> None:
    with pytest.raises(SystemExit) as stop:
        main(["gate", "--foo"])
    assert stop.value.code == gate.MISTAKE


def test_a_crash_of_gate_is_not_read_as_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.evaluation import gate as gating

    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(gating, "verify", crash)
    assert main(["gate", "--verify", "x.json"]) == gate.MISTAKE
    assert "a bug" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "code"), [("report", 1), ("gate", gate.MISTAKE)])
def test_a_folder_that_cannot_be_written_is_one_line(
    verb: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.evaluation import gate as gating

    def full(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(gating, "verify", full)
    monkeypatch.setattr(results, "load", full)
    assert main({"report": ["report", "x.json"], "gate": ["gate", "--verify", "x.json"]}[verb]) == code
    assert capsys.readouterr().err == "demeanor: /somewhere: Permission denied\n"


@pytest.mark.parametrize("name", ["world:corpus", "builtin:honest", "builtin:"])
def test_an_unknown_suite_is_a_mistake_on_the_command_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["suites", name]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"demeanor: unknown suite '{name}'.")
    assert "builtin:honesty" in told


def test_brackets_of_a_target_are_printed_as_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = {
        "id": "a[b]",
        "messages": [{"role": "user", "content": "[/b] x"}],
        "scorer": "exact",
        "target": {"answers": ["[/bold]", "[red]"]},
        "axis": "[i]",
        "cluster": "c",
    }
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(item) + "\n")
    assert main(["suites", str(file), "--show", "1"]) == 0
    told = capsys.readouterr().out
    assert "a[b]  exact {'answers': ['[/bold]', '[red]']}" in told
    assert "[/b] x" in told
    assert "[i]" in told


def test_a_page_written_elsewhere_has_the_sections_that_lie_beside_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    asked: list[tuple[object, Path, Path | None]] = []

    def show(result: object, folder: Path, *, page: Path | None = None) -> None:
        asked.append((result, folder, page))

    monkeypatch.setattr(results, "load", lambda path: path)
    monkeypatch.setattr(publish, "show", show)
    assert main(["report", str(tmp_path / "desk.json"), "--out", str(tmp_path / "site" / "index.html")]) == 0
    assert asked == [(tmp_path / "desk.json", tmp_path, tmp_path / "site" / "index.html")]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            ["--variants", "harbour-desk:dpo", "harbour-desk:base", "harbour-desk:dpo"],
            "--variants: harbour-desk:dpo stands there twice",
        ),
        (["--set", "evaluation.suites=[]"], "evaluation.suites: no items to measure on"),
    ],
)
def test_eval_says_at_once_what_leaves_nothing_to_compare(
    more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", DEMO, "--results", str(tmp_path), *more]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments_",
    [
        ["eval", DEMO, "--compare", "bad"],
        ["eval", DEMO, "--variants", "harbour-desk:sff"],
        ["eval", DEMO, "--variants", "harbour-desk:sft+nothing"],
        ["attribute", DEMO, "--layers", "nothing"],
        ["attribute", DEMO, "--weights", "dpo", "sft"],
        ["seeds", DEMO, "--seeds", "1"],
        ["diagnose", DEMO, "--turns", "x.db", "--limit", "3"],
        ["runs", "--yes"],
    ],
)
def test_a_command_line_that_cannot_be_meant_has_the_code_of_a_mistake(
    arguments_: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import REPOSITORY

    monkeypatch.chdir(REPOSITORY)
    assert main([*arguments_, *(["--results", str(tmp_path)] if arguments_[0] != "runs" else [])]) == 2
    assert capsys.readouterr().err.startswith("demeanor: ")
