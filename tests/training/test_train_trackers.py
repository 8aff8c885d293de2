"""Trackers are told what the ledger holds, once, and can never stop a run. The libraries here are tiny packages on sys.path."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import OPTIM, Rounds, Tiny, loss, outputs, quiet, rows

from demeanor.core.errors import DemeanorError
from demeanor.training import progress
from demeanor.training.loop import fit
from demeanor.training.progress import OpenTracker
from demeanor.training.resume import Interrupted
from demeanor.training.trackers import numbers, open_tracker, together

# Each fake keeps what it is told in the JSON lines file that the environment of the test names.
FAKE_RUN = """
import json, os, pathlib

FILE = pathlib.Path(os.environ["FAKE_TRACKER"])


def told():
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


class Run:
    def __init__(self, settings):
        self.settings = settings
        last = max((step for step, _ in told()), default=-1)
        self.step = self._next_step = last + 1
        FILE.with_suffix(".settings").write_text(json.dumps(settings))

    def log(self, row, step):
        if os.environ.get("FAKE_TRACKER_BREAKS") == str(step):
            raise ConnectionError("no route to host")
        with FILE.open("a") as file:
            file.write(json.dumps([step, row]) + "\\n")

    def finish(self):
        FILE.with_suffix(".closed").touch()


def init(**settings):
    global finish
    run = Run(settings)
    finish = run.finish
    return run
"""
FAKE_MLFLOW = """
import json, os, pathlib
from types import SimpleNamespace as Is

FILE = pathlib.Path(os.environ["FAKE_TRACKER"])


def Metric(key, value, timestamp, step):
    assert timestamp > 1e12  # milliseconds
    return Is(key=key, value=value, step=step)


class Client:
    def __init__(self, tracking_uri):
        assert tracking_uri == "http://here:5000"

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "7"

    def search_runs(self, experiments, filter):
        assert (experiments, filter) == (["7"], "tags.`demeanor.key` = 'k1'")
        return [Is(info=Is(run_id="r"))] if FILE.exists() else []

    def create_run(self, experiment, tags, run_name):
        assert tags["demeanor.key"] == "k1"
        FILE.touch()
        return Is(info=Is(run_id="r"))

    def get_metric_history(self, run, name):
        return [Is(step=step) for step, row in map(json.loads, FILE.read_text().splitlines()) if name in row]

    def log_batch(self, run, metrics):
        assert 0 < len(metrics) <= 1000
        with FILE.open("a") as file:
            file.writelines(json.dumps([m.step, {m.key: m.value}]) + "\\n" for m in metrics)

    def set_terminated(self, run):
        FILE.with_suffix(".closed").touch()


entities, tracking = Is(Metric=Metric), Is(MlflowClient=Client)
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Fake wandb, trackio and mlflow packages; the file of what they were told."""
    for name, source in (("wandb", FAKE_RUN), ("trackio", FAKE_RUN), ("mlflow", FAKE_MLFLOW)):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(source)
    names = ("wandb", "trackio", "mlflow")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("FAKE_TRACKER", str(tmp_path / "told.jsonl"))
    yield tmp_path / "told.jsonl"
    for name in names:
        sys.modules.pop(name, None)


KINDS = ["wandb:desk", "trackio:desk", "mlflow:http://here:5000"]


def read(path: Path) -> dict[tuple[int, str], float]:
    """Everything told, by step and name; fails where something was told twice."""
    found: dict[tuple[int, str], float] = {}
    for line in path.read_text().splitlines():
        step, row = json.loads(line)
        for name, value in row.items():
            assert (step, name) not in found, f"{name} of step {step} was told twice"
            found[step, name] = value
    return found


def in_ledger(path: Path) -> dict[tuple[int, str], float]:
    return {
        (row["step"], name): value for row in progress.read_log(path) for name, value in numbers(row).items()
    }


def train(folder: Path, track: OpenTracker | None, *, steps: int = 10, stop_at: int | None = None) -> Tiny:
    """Train the tiny model on ten steps, evaluated five times; Ctrl-C after `stop_at`."""
    watch, model = quiet(), Tiny()
    if stop_at is not None:
        import signal

        update = watch.update

        def stopping(step: int, *numbers: Any) -> None:
            update(step, *numbers)
            if step == stop_at:
                signal.raise_signal(signal.SIGINT)

        watch.update = stopping  # type: ignore[method-assign]
    fit(
        model,
        outputs,
        loss,
        rows(),
        Rounds(rows(), steps),
        OPTIM,
        out=folder,
        watch=watch,
        read_last=False,
        evaluate=lambda model, step: {"loss": float(step)},
        tracker=track and (lambda: track("sft", "k1", {"stage": "sft"})),
    )
    return model


@pytest.mark.parametrize("text", KINDS)
def test_a_tracker_is_told_every_number_of_the_ledger_at_its_step(
    text: str, told: Path, tmp_path: Path
) -> None:
    train(tmp_path / "run", together([text]))
    assert read(told) == in_ledger(tmp_path / "run" / "ledger.jsonl")
    assert {"loss", "lr", "grad_norm", "tokens", "likely", "eval_loss"} <= {name for _, name in read(told)}
    assert told.with_suffix(".closed").exists()


@pytest.mark.parametrize("text", KINDS)
def test_a_resume_tells_no_step_twice_and_leaves_none_out(text: str, told: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", together([text]), stop_at=5)
    before = read(told)
    assert {step for step, name in before if name == "loss"} == set(range(1, 6))
    train(tmp_path / "run", together([text]))
    assert read(told) == in_ledger(tmp_path / "run" / "ledger.jsonl")
    assert before.items() <= read(told).items()


@pytest.mark.parametrize("text", KINDS)
def test_a_run_that_was_killed_behind_its_checkpoint_tells_no_step_twice(
    text: str, told: Path, tmp_path: Path
) -> None:
    """The tracker knows steps to 5, the checkpoint is of step 3: 4 and 5 are trained again and not told again."""
    with pytest.raises(Interrupted):
        train(tmp_path / "run", together([text]), stop_at=3)
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", together([text]), stop_at=5)
    train(tmp_path / "killed", together([text]))
    whole = in_ledger(tmp_path / "killed" / "ledger.jsonl")
    assert read(told).keys() == whole.keys()
    assert all(read(told)[at] == value for at, value in whole.items() if at[1] == "loss")


def test_a_tracker_that_comes_late_is_told_what_came_before_it(told: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(tmp_path / "run", None, stop_at=5)
    train(tmp_path / "run", together(["wandb:desk"]))
    assert read(told) == in_ledger(tmp_path / "run" / "ledger.jsonl")


def test_the_run_there_has_the_stage_key_and_the_record(told: Path) -> None:
    open_tracker("wandb:desk")("dpo", "k9", {"stack": "desk"}).close()
    assert json.loads(told.with_suffix(".settings").read_text()) == {
        "project": "desk",
        "id": "k9",
        "name": "dpo-k9",
        "config": {"stack": "desk"},
        "resume": "allow",
    }


def test_a_tracker_that_fails_warns_once_and_training_ends_as_without_it(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRACKER_BREAKS", "4")
    with pytest.warns(
        UserWarning, match=r"--track wandb:desk is off for the rest of this stage: ConnectionError: no route"
    ) as warned:
        tracked = train(tmp_path / "tracked", together(["wandb:desk"]))
    assert len(warned) == 1
    assert max(step for step, _ in read(told)) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = train(tmp_path / "alone", None)
    assert all(torch.equal(a, b) for a, b in zip(tracked.parameters(), alone.parameters(), strict=True))


def test_a_tracker_that_cannot_begin_warns_and_the_other_one_goes_on(told: Path, tmp_path: Path) -> None:
    both = together(["mlflow:http://elsewhere", "wandb:desk"])
    with pytest.warns(UserWarning, match="mlflow:http://elsewhere is off"):
        train(tmp_path / "run", both)
    assert read(told) == in_ledger(tmp_path / "run" / "ledger.jsonl")


def test_null_text_and_truth_values_are_no_numbers() -> None:
    assert numbers({"step": 3, "a": 1, "b": None, "c": "x", "d": True, "e": 0.5}) == {
        "a": 1.0,
        "e": 0.5,
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tensorbord:x", r"--track tensorbord:x: unknown tracker 'tensorbord'. Did you mean 'tensorboard'\?"),
        ("wandb", "--track wandb: has no place; write wandb:NAME"),
        ("mlflow:", "has no place"),
    ],
)
def test_a_tracker_that_is_no_tracker_is_an_error_before_any_work(text: str, error: str) -> None:
    with pytest.raises(DemeanorError, match=error):
        together([text])


def test_a_library_that_is_missing_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(DemeanorError, match="install it with: pip install trackio"):
        together(["trackio:desk"])


def test_no_track_is_no_tracker() -> None:
    assert together([]) is None


def test_tensorboard_shows_every_step_once_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track = together([f"tensorboard:{tmp_path / 'events'}"])
    with pytest.raises(Interrupted):
        train(tmp_path / "run", track, stop_at=3)
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", track, stop_at=5)
    train(tmp_path / "killed", track)
    shown = EventAccumulator(str(tmp_path / "events" / "sft-k1"))
    shown.Reload()
    found = {
        (event.step, name): event.value for name in shown.Tags()["scalars"] for event in shown.Scalars(name)
    }
    assert sum(len(shown.Scalars(name)) for name in shown.Tags()["scalars"]) == len(found)
    assert found == pytest.approx(
        in_ledger(tmp_path / "killed" / "ledger.jsonl"), rel=1e-6
    )  # events hold 32-bit floats
