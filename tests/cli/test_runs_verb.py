"""`demeanor runs`: the list, and a prune that keeps everything a given stack stands on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from demeanor.cli import main
from demeanor.cli.stack import size
from demeanor.stack.stack import Stack, training_keys
from demeanor.training.runs import Runs

OTHER = "0123456789abcdef"


@pytest.fixture
def folder(trained: tuple[Stack, Runs], tmp_path: Path) -> Path:
    """The tiny stack's runs and one of no stack."""
    stack, runs = trained
    for key in training_keys(stack):  # other tests may have trained more in this folder
        shutil.copytree(runs.folder(key), tmp_path / "runs" / key)
    with Runs(tmp_path / "runs").begin(OTHER, {"stack": "old-desk", "stage": "sft"}):
        pass
    return tmp_path / "runs"


def listed(out: str) -> set[str]:
    return {line.split()[0] for line in out.splitlines() if line[:16].strip() and len(line.split()[0]) == 16}


def test_every_run_is_listed_with_its_stage_and_state(
    trained: tuple[Stack, Runs], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = trained[0]
    assert main(["runs", "list", "--runs", str(folder)]) == 0
    out = capsys.readouterr().out
    assert listed(out) == {stack.stage_key(name) for name in ("base", "sft", "rm", "dpo")} | {OTHER}
    line = next(line for line in out.splitlines() if line.startswith(stack.stage_key("dpo")))
    assert line.split()[1:3] == ["tiny-desk", "dpo"]
    assert line.endswith("finished")
    assert main(["runs", "list", str(stack.path), "--runs", str(folder)]) == 0
    assert OTHER not in capsys.readouterr().out


def test_prune_deletes_nothing_until_it_is_told_twice(
    trained: tuple[Stack, Runs], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = trained[0]
    before = {path.name for path in folder.iterdir()}
    assert main(["runs", "prune", str(stack.path), "--runs", str(folder)]) == 0
    out = capsys.readouterr().out
    assert listed(out) == {OTHER}
    assert "Nothing was deleted" in out
    assert {path.name for path in folder.iterdir()} == before
    assert main(["runs", "prune", str(stack.path), "--yes", "--runs", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == before - {OTHER}
    assert "deleted 1 run," in capsys.readouterr().out
    assert all(Runs(folder).complete(key) for key in training_keys(stack))


def test_a_variant_of_the_stack_keeps_the_ancestors_they_share(
    trained: tuple[Stack, Runs], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another dpo the old one may go; base, sft and rm stay."""
    stack = trained[0]
    main(
        [
            "runs",
            "prune",
            str(stack.path),
            "--set",
            "weights.stages.dpo.objective.beta=0.5",
            "--runs",
            str(folder),
        ]
    )
    assert listed(capsys.readouterr().out) == {OTHER, stack.stage_key("dpo")}


def test_prune_without_a_stack_would_delete_everything_and_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(folder.iterdir())
    assert main(["runs", "prune", "--yes", "--runs", str(folder)]) == 2
    assert "wanted the stack files whose weights stay" in capsys.readouterr().err
    assert set(folder.iterdir()) == before


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "--runs", str(tmp_path / "none")]) == 0
    assert "no runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (999_950, "1.0 MB"),
        (3 * 10**12, "3.0 TB"),
    ],
)
def test_sizes_are_powers_of_a_thousand(count: int, text: str) -> None:
    assert size(count) == text
