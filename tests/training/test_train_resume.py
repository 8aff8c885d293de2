"""kill -9 and Ctrl-C at any moment, then the same command: weights, moments and ledger are those of an uninterrupted run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demeanor.training import progress


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every scenario run once, in children of one process: {scenario: exit codes}, and under "root" where."""
    root = tmp_path_factory.mktemp("runs")
    command = [sys.executable, str(Path(__file__).with_name("victim.py")), str(root)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "root": root, "said": done.stderr}


def curve(folder: Path) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if k != "seconds"} for row in progress.read_log(folder / "ledger.jsonl")
    ]


def assert_same_run(ended: dict[str, Any], scenario: str) -> None:
    whole, other = ended["root"] / "whole", ended["root"] / scenario
    wanted, got = load_file(whole / "checkpoint.safetensors"), load_file(other / "checkpoint.safetensors")
    assert wanted.keys() == got.keys()
    for name in wanted:
        assert torch.equal(wanted[name], got[name]), name
    assert curve(other) == curve(whole)


def test_the_uninterrupted_run_is_what_it_should_be(ended: dict[str, Any]) -> None:
    assert ended["whole"] == [0]
    rows = curve(ended["root"] / "whole")
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 31))
    assert [r["step"] for r in rows if "eval_weight" in r] == [0, 6, 12, 18, 24, 30]
    losses = [r["loss"] for r in rows if "loss" in r]
    assert losses[-1] < losses[0]


def test_kill_9_inside_a_step_then_the_same_command_gives_the_same_weights(ended: dict[str, Any]) -> None:
    assert ended["killed"] == [-signal.SIGKILL] * 3 + [0]
    assert_same_run(ended, "killed")


def test_ctrl_c_finishes_the_step_says_how_to_go_on_and_loses_nothing(ended: dict[str, Any]) -> None:
    assert ended["ctrl-c"] == [130, 143, 0]
    assert (
        "stopped after step 8 of 30; run the same command again to resume from there" in ended["said"]
    )  # 15th of 2 per step
    assert "stopped after step 13 of 30" in ended["said"]  # and 5 more
    assert_same_run(ended, "ctrl-c")


def test_kill_9_at_random_moments_until_it_is_done_gives_the_same_weights(ended: dict[str, Any]) -> None:
    codes = ended["any moment"]
    assert codes[-1] == 0
    assert codes.count(-signal.SIGKILL) >= 2  # 30 steps of at least 4 ms, killed after at most 80
    assert_same_run(ended, "any moment")
