"""kill -9 in the middle of each stage, then the same command: the same weights as an uninterrupted run, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demeanor.app import load_stack
from demeanor.stack.stack import Stack
from demeanor.training.runs import CHECKPOINT, Runs
from tests.app import tiny

pytestmark = pytest.mark.xdist_group("tiny")
STAGES = ("base", "sft", "rm", "dpo")


def command(folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "demeanor",
        "train",
        str(folder / "stack.yaml"),
        "--runs",
        str(folder / "runs"),
    ]


def killed_in(folder: Path, stage: str, key: str) -> None:
    """Start the command and kill it once the stage has a checkpoint and has gone on a little."""
    checkpoint = folder / "runs" / key / CHECKPOINT
    process = subprocess.Popen(
        command(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    assert process.wait() == -signal.SIGKILL, f"{stage} ended before it could be killed:\n{said}"
    assert not (folder / "runs" / key / "model").exists()


def test_a_training_killed_in_every_stage_ends_in_the_same_weights(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    whole_stack, whole = trained
    stack = load_stack(tiny.write(tmp_path))
    keys = {stage: stack.stage_key(stage) for stage in STAGES}
    assert keys == {stage: whole_stack.stage_key(stage) for stage in STAGES}
    for stage in STAGES:
        killed_in(tmp_path, stage, keys[stage])
    subprocess.run(
        command(tmp_path), check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for stage, key in keys.items():
        interrupted = load_file(tmp_path / "runs" / key / "model" / "model.safetensors")
        uninterrupted = load_file(whole.model(key) / "model.safetensors")
        assert interrupted.keys() == uninterrupted.keys()
        different = [n for n in interrupted if not torch.equal(interrupted[n], uninterrupted[n])]
        assert not different, f"{stage}: {different}"
