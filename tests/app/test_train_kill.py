"""kill -9 in the middle of each stage, then the same command: the same weights as an uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from demeanor.app import load_stack
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.app import tiny

STAGES = ("base", "sft", "rm", "dpo")
SCRIPT = Path(__file__).with_name("killed_training.py")


def test_a_training_killed_in_every_stage_ends_in_the_same_weights(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    whole_stack, whole = trained
    stack = load_stack(tiny.write(tmp_path))
    keys = {stage: stack.stage_key(stage) for stage in STAGES}
    assert keys == {stage: whole_stack.stage_key(stage) for stage in STAGES}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(stack.path), str(tmp_path / "runs"), *keys.values()],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {**dict.fromkeys(keys.values(), -signal.SIGKILL), "last": 0}, (
        done.stderr
    )
    for stage, key in keys.items():
        interrupted = load_file(tmp_path / "runs" / key / "model" / "model.safetensors")
        uninterrupted = load_file(whole.model(key) / "model.safetensors")
        assert interrupted.keys() == uninterrupted.keys()
        different = [n for n in interrupted if not torch.equal(interrupted[n], uninterrupted[n])]
        assert not different, f"{stage}: {different}"
