"""stacks/alignment.yaml: real comparisons through SFT, RM, DPO, KTO and ORPO; a few rows by default, all of it under `make experiments`.

Skips with a clear message where ../shared is absent.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from demeanor.app import load_stack
from demeanor.cli import main
from tests.conftest import REPOSITORY

FILE = REPOSITORY / "stacks/alignment.yaml"
STAGES = ("sft", "rm", "dpo", "kto", "orpo")


def metrics_log(runs: Path, stage: str, overrides: list[str]) -> list[dict[str, float]]:
    key = load_stack(FILE, overrides).stage_key(stage)
    return [json.loads(line) for line in (runs / key / "ledger.jsonl").read_text().splitlines()]


def test_every_stage_trains_on_a_few_real_rows(shared: Path, tmp_path: Path) -> None:
    overrides = [
        f"weights.stages.{stage}.data.{i}.limit=24"
        for stage in STAGES
        for i in range(2 if stage == "rm" else 1)
    ]
    assert (
        main(["train", str(FILE), "--runs", str(tmp_path), *(x for o in overrides for x in ("--set", o))])
        == 0
    )
    for stage in STAGES:
        losses = [row["loss"] for row in metrics_log(tmp_path, stage, overrides) if "loss" in row]
        assert losses
        assert all(map(math.isfinite, losses))
    first = {
        stage: next(row["loss"] for row in metrics_log(tmp_path, stage, overrides) if "loss" in row)
        for stage in ("dpo", "kto")
    }
    assert first["dpo"] == pytest.approx(
        math.log(2), abs=0.02
    )  # bf16: policy and reference are batched differently
    assert first["kto"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.experiment
def test_all_real_rows_and_what_the_reward_model_learned(shared: Path, tmp_path: Path) -> None:
    assert main(["train", str(FILE), "--runs", str(tmp_path)]) == 0
    last = {
        stage: next(row for row in reversed(metrics_log(tmp_path, stage, [])) if "eval_loss" in row)
        for stage in STAGES
    }
    accuracy = [last["rm"][f"eval_accuracy{end}"] for end in ("", "/low", "/high")]
    print(
        f"reward model, held out, n = {last['rm']['eval_rows']:.0f} prompts: {accuracy[0]:.1%} ({accuracy[1]:.1%} to {accuracy[2]:.1%})"
    )
    assert accuracy[1] > 0.5
    assert last["dpo"]["eval_loss"] < math.log(2)
    assert last["kto"]["eval_loss"] < 0.5
