"""The gate on trained weights: against a variant, against an earlier result, its exit codes and its signed record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demeanor.app import services
from demeanor.cli import main
from demeanor.core.errors import DataError, SpecError
from demeanor.evaluation import gate as gating
from demeanor.evaluation import ladder
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.conftest import each

RULES = "non_inferiority:\n- {axis: '*', margin: 0.9}\n"


def gate(trained: tuple[Stack, Runs], folder: Path, *more: str) -> int:
    stack, runs = trained
    return main(
        [
            "gate",
            str(stack.path),
            "--rules",
            str(folder / "gate.yaml"),
            "--runs",
            str(runs.root),
            "--results",
            str(folder),
            "--limit",
            "2",
            *more,
        ]
    )


def test_a_version_against_itself_has_no_difference_and_the_record_holds_its_hashes_and_signature(
    trained: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(gating.KEY, "a secret")
    (tmp_path / "gate.yaml").write_text(RULES)
    code = gate(trained, tmp_path, "--against", "tiny-desk")
    path = tmp_path / "tiny-desk.first2.gate.json"
    record = json.loads(path.read_text())
    assert {f["value"] for f in record["findings"]} == {0.0}
    assert code == {"pass": 0, "fail": 1, "inconclusive": 4}[record["verdict"]]
    assert record["hashes"]["candidate"] == record["hashes"]["baseline"] == trained[0].key()
    assert record["hashes"]["answers"] == record["hashes"]["baseline answers"]
    assert "a secret" not in path.read_text() + capsys.readouterr().out
    assert main(["gate", "--verify", str(path)]) == code
    assert main(["gate", str(path.parent / "nothing.yaml"), "--against", "x", "--rules", "y"]) == 2, (
        "a mistake is no verdict"
    )

    path.write_text(path.read_text().replace(f'"verdict": "{record["verdict"]}"', '"verdict": "fail"', 1))
    with pytest.raises(DataError, match="does not hold"):
        gating.verify(path, "a secret")
    with pytest.raises(DataError, match="is not set"):
        gating.verify(path, None)


def test_an_earlier_result_is_a_baseline_and_only_on_the_same_items(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stack, runs = trained
    ladder.evaluate(stack, services(runs), tmp_path, variants=["tiny-desk:base"], limit=2, name="old")
    (tmp_path / "gate.yaml").write_text("zero_tolerance:\n- {axis: jailbreak, below: 0.5}\n")
    gate(trained, tmp_path, "--against", str(tmp_path / "old.json"))
    record = json.loads((tmp_path / "tiny-desk.first2.gate.json").read_text())
    assert record["hashes"]["baseline"] == stack.resolve("tiny-desk:base").key()
    assert record["signature"] is None
    ladder.evaluate(stack, services(runs), tmp_path, variants=["tiny-desk:base"], limit=1, name="older")
    with pytest.raises(DataError, match="nothing to pair"):
        gating.run(
            stack,
            services(runs),
            tmp_path,
            against=str(tmp_path / "older.json"),
            rules=tmp_path / "gate.yaml",
            limit=2,
            name=None,
        )


def test_a_mistake_in_the_rules_is_named(tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("superiorty:\n- {axis: facts}\n")
    with pytest.raises(SpecError, match="superiority"):
        gating.read_rules(tmp_path / "gate.yaml")


def test_every_name_that_the_suite_does_not_have_is_told_before_anything_is_measured(
    trained: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gate.yaml").write_text(
        "superiority:\n- {axis: jailbrake}\nzero_tolerance:\n- {items: [nope-1], below: 0.1}\n"
        "non_inferiority:\n- {axis: '*', margin: 0.1}\n- {axis: Facts, margin: 0.1}\n"
    )
    assert gate(trained, tmp_path, "--against", "tiny-desk:base") == 2
    told = capsys.readouterr().err
    assert "superiority[0].axis: unknown axis 'jailbrake'. Did you mean 'jailbreak'?" in told
    assert "non_inferiority[1].axis: unknown axis 'Facts'." in told
    assert "zero_tolerance[0].items: 'nope-1' is not an item of the suite" in told
    assert str(tmp_path / "gate.yaml") in told
    assert not list(tmp_path.glob("*.rows.jsonl"))


def test_a_baseline_may_name_its_layers_in_any_order(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gate.yaml").write_text(RULES)
    stack, runs = trained
    report, _ = gating.run(
        stack,
        services(runs),
        tmp_path,
        against="tiny-desk:dpo+retrieval+prompt",
        rules=tmp_path / "gate.yaml",
        limit=1,
    )
    assert all(finding.n for finding in each(report.findings))
