"""Run folders: one writer at a time, complete only when whole, and a record of how it came to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from demeanor.core.errors import DemeanorError
from demeanor.core.files import git_revision, origin
from demeanor.training.runs import Runs


def runs(root: Path) -> Runs:
    return Runs(root, now=lambda: datetime(2026, 11, 23, tzinfo=UTC))


def test_a_run_is_complete_only_after_finish(tmp_path: Path) -> None:
    mine = runs(tmp_path)
    assert not mine.complete("k")
    with mine.begin("k", {"spec": {"lr": 1}}) as folder:
        (folder / "checkpoint.safetensors").write_text("state")
        (mine.part("k") / "model.safetensors").write_text("weights")
        assert not mine.complete("k")
        assert mine.finish("k") == mine.model("k")
    assert mine.complete("k")
    assert sorted(p.name for p in folder.iterdir()) == [
        "model",
        "record.json",
    ]  # training state, part and lock are gone
    assert json.loads((mine.model("k") / "demeanor.json").read_text())["spec"] == {"lr": 1}


def test_what_a_killed_save_left_behind_is_not_in_the_model(tmp_path: Path) -> None:
    mine = runs(tmp_path)
    with mine.begin("k", {}):
        (mine.part("k") / "half.safetensors").write_text("torn")
    with mine.begin("k", {}):
        (mine.part("k") / "config.json").write_text("{}")
        mine.finish("k")
    assert sorted(p.name for p in mine.model("k").iterdir()) == ["config.json", "demeanor.json"]


def test_the_record_names_spec_code_versions_and_every_session(tmp_path: Path) -> None:
    for _ in range(2):
        with runs(tmp_path).begin("k", {"data": {"rows.jsonl": "abc"}}) as folder:
            pass
    record = json.loads((folder / "record.json").read_text())
    assert (record["key"], record["data"]) == ("k", {"rows.jsonl": "abc"})
    first, second = record["sessions"]
    assert first["began"] == second["began"] == "2026-11-23T00:00:00+00:00"
    assert first["versions"]["torch"] == origin()["versions"]["torch"] is not None
    assert first["pid"] == os.getpid()


def test_the_git_revision_is_the_commit_and_none_outside_a_checkout(tmp_path: Path) -> None:
    assert git_revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    commit = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert git_revision(tmp_path) == commit
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == f"{commit}-dirty"


def test_a_second_writer_is_told_who_holds_the_run(tmp_path: Path) -> None:
    with runs(tmp_path).begin("k", {}):
        with pytest.raises(DemeanorError, match=rf"process {os.getpid()} on .* is training this"):
            runs(tmp_path).begin("k", {})
        with runs(tmp_path).begin("other", {}):
            pass


def test_the_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError), runs(tmp_path).begin("k", {}):
        raise ValueError
    with runs(tmp_path).begin("k", {}):
        pass


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from demeanor.training.runs import Runs\n"
        "runs = Runs(Path(sys.argv[1])); runs.begin('k', {}); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DemeanorError, match=f"process {other.pid} on"):
            runs(tmp_path).begin("k", {})
    finally:
        other.kill()
        other.wait()
    with runs(tmp_path).begin("k", {}) as folder:
        assert (folder / "lock").read_text().startswith(f"process {os.getpid()} on")
