"""The list of runs says what the files say, whatever state they are in; and deletes only whole runs that nobody holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from tiny_training import OPTIM, Rounds, Tiny, loss, outputs, quiet, rows

from demeanor.core.errors import DemeanorError
from demeanor.training import progress
from demeanor.training import runs as inventory
from demeanor.training.loop import fit
from demeanor.training.resume import Interrupted
from demeanor.training.runs import Runs

KEYS = [f"{n:016x}" for n in range(9)]


def begun(root: Path, key: str, *, hour: int = 8) -> Path:
    """A run that has a record and nothing else."""
    with Runs(root, now=lambda: datetime(2026, 11, 23, hour, 5, tzinfo=UTC)).begin(
        key, {"stack": "desk", "stage": "sft"}
    ) as folder:
        return folder


def trained(root: Path, key: str, *, stop_at: int | None = None, steps: int = 10) -> Path:
    """A run of the real loop, stopped by Ctrl-C after `stop_at`; else finished, as `stage` does it."""
    folder, watch = begun(root, key), quiet()
    if stop_at is not None:
        update = watch.update

        def stopping(step: int, *rest: float) -> None:
            update(step, *rest)  # type: ignore[arg-type]
            if step == stop_at:
                import signal

                signal.raise_signal(signal.SIGINT)

        watch.update = stopping  # type: ignore[method-assign]
    try:
        fit(
            Tiny(),
            outputs,
            loss,
            rows(),
            Rounds(rows(), steps),
            OPTIM,
            out=folder,
            watch=watch,
            read_last=False,
            evaluate=lambda model, step: {"loss": 5.0 - step},
        )
    except Interrupted:
        return folder
    runs = Runs(root)
    (runs.part(key) / "model.safetensors").write_bytes(b"x" * 100)
    runs.finish(key)
    return folder


def test_a_finished_run_and_an_interrupted_one_are_told_apart_with_their_numbers(tmp_path: Path) -> None:
    trained(tmp_path, KEYS[0])
    trained(tmp_path, KEYS[1], stop_at=7)
    found = {x.key: x for x in inventory.entries(tmp_path)}
    assert [found[key].state for key in KEYS[:2]] == ["finished", "interrupted at step 7 of 10"]
    for key, last, held in ((KEYS[0], 10, -5.0), (KEYS[1], 7, -1.0)):
        steps = {
            row["step"]: row["loss"]
            for row in progress.read_log(tmp_path / key / "ledger.jsonl")
            if "loss" in row
        }
        assert (found[key].loss, found[key].held_out) == (steps[last], held)
        assert (found[key].stack, found[key].stage, inventory.began(found[key])) == (
            "desk",
            "sft",
            "2026-11-23 08:05",
        )
        assert found[key].size == sum(
            path.stat().st_size for path in (tmp_path / key).rglob("*") if path.is_file()
        )


def test_a_run_without_a_checkpoint_is_interrupted_before_it(tmp_path: Path) -> None:
    begun(tmp_path, KEYS[0])
    assert inventory.entries(tmp_path)[0].state == "interrupted before its first checkpoint"


def test_a_run_that_a_process_holds_is_running_and_looking_does_not_take_it(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    with runs.begin(KEYS[0], {}):
        assert inventory.entries(tmp_path)[0].state == "running"
        assert inventory.unneeded(inventory.entries(tmp_path), ()) == []
        with pytest.raises(DemeanorError, match="is training this"):
            inventory.delete(tmp_path, KEYS[0])
    assert inventory.entries(tmp_path)[0].state == "interrupted before its first checkpoint"
    with Runs(tmp_path).begin(KEYS[0], {}):  # the looks left no lock behind
        pass


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [
        ("record.json", b"{", "broken: record.json"),
        ("record.json", b"[]", "broken: record.json is no record"),
        ("record.json", b"\xff\xfe", "broken: record.json"),
        ("ledger.jsonl", b'nonsense\n{"step": 1}\n', "broken: .*ledger.jsonl:1"),
        ("checkpoint.safetensors", b"junk", "broken: checkpoint"),
    ],
)
def test_a_broken_file_is_a_state_and_never_an_error(
    name: str, content: bytes, state: str, tmp_path: Path
) -> None:
    (trained(tmp_path, KEYS[0], stop_at=3) / name).write_bytes(content)
    begun(tmp_path, KEYS[1])
    found = {x.key: x for x in inventory.entries(tmp_path)}
    assert len(found) == 2
    import re

    assert re.match(state, found[KEYS[0]].state)


def test_a_checkpoint_of_something_else_is_broken(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, begun(tmp_path, KEYS[0]) / "checkpoint.safetensors")
    (tmp_path / KEYS[1]).mkdir()
    found = {x.key: x.state for x in inventory.entries(tmp_path)}
    assert found[KEYS[0]].startswith("broken: checkpoint.safetensors")
    assert found[KEYS[1]] == "broken: no record.json"


def test_runs_are_listed_the_last_begun_first_and_other_things_not_at_all(tmp_path: Path) -> None:
    for key, hour in ((KEYS[0], 9), (KEYS[1], 11), (KEYS[2], 10)):
        begun(tmp_path, key, hour=hour)
    (tmp_path / "references").mkdir()
    (tmp_path / "my-notes").mkdir()
    (tmp_path / KEYS[3]).write_text("a file")
    assert [x.key for x in inventory.entries(tmp_path)] == [KEYS[1], KEYS[2], KEYS[0]]
    assert inventory.entries(tmp_path / "nowhere") == []


def test_only_what_nobody_needs_is_unneeded(tmp_path: Path) -> None:
    for key in KEYS[:3]:
        begun(tmp_path, key)
    assert {x.key for x in inventory.unneeded(inventory.entries(tmp_path), {KEYS[1], "another"})} == {
        KEYS[0],
        KEYS[2],
    }


def test_a_deleted_run_is_gone_and_the_others_stay(tmp_path: Path) -> None:
    trained(tmp_path, KEYS[0])
    kept = trained(tmp_path, KEYS[1])
    inventory.delete(tmp_path, KEYS[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [KEYS[1]]
    assert (kept / "model" / "model.safetensors").exists()


def test_a_delete_that_was_killed_leaves_no_run_and_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path, KEYS[0])

    def killed(path: Path, **settings: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inventory.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            inventory.delete(tmp_path, KEYS[0])
    assert inventory.entries(tmp_path) == []
    assert not Runs(tmp_path).complete(KEYS[0])
    assert list(tmp_path.iterdir())
    inventory.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_record_of_another_writer_still_has_a_line(tmp_path: Path) -> None:
    (begun(tmp_path, KEYS[0]) / "record.json").write_text(json.dumps({"sessions": []}))
    found = inventory.entries(tmp_path)[0]
    assert (found.stack, found.stage, found.began, inventory.began(found)) == ("?", "?", "", "")
