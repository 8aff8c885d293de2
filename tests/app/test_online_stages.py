"""Online stages of a small stack: every kind trains, logs what it should, and goes on bit for bit after a kill."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demeanor import app
from demeanor.core.types import Decoding
from demeanor.engine.scheduler import Request
from demeanor.model import native
from demeanor.model.reward_model import ActorCritic
from demeanor.stack.stack import Stack
from demeanor.training import online
from demeanor.training.resume import Interrupted
from demeanor.training.runs import CHECKPOINT, LEDGER, Runs, read_log
from demeanor.training.stage import RunOptions
from tests.app import tiny_online
from tests.conftest import each
from tests.training.test_train_parallel import together

FP32 = RunOptions("fp32")  # the format that is faster here may change between two runs, and with it the bits


def begun(folder: Path, trained: tuple[Stack, Runs], *stages: str, **changes: Any) -> tuple[Stack, Runs]:
    """A stack in `folder` whose base, sft and rm are those of the trained one."""
    path = tiny_online.write(folder, *stages, **changes)
    stack, runs = app.load_stack(path), Runs(folder / "runs")
    for stage in ("base", "sft", "rm"):
        key = stack.stage_key(stage)
        shutil.copytree(trained[1].folder(key), runs.folder(key), dirs_exist_ok=True)
    return stack, runs


def rows_of(stack: Stack, runs: Runs, stage: str) -> list[dict[str, Any]]:
    return read_log(runs.folder(stack.stage_key(stage)) / LEDGER)


def weights_of(stack: Stack, runs: Runs, stage: str) -> dict[str, torch.Tensor]:
    folder = runs.model(stack.stage_key(stage))
    (file,) = folder.glob("*model.safetensors")  # of an adapter: adapter_model
    return load_file(file)


@pytest.fixture(scope="module")
def everything(trained: tuple[Stack, Runs], tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    stack, runs = begun(tmp_path_factory.mktemp("online"), trained, *tiny_online.STAGES)
    app.train(stack, runs, options=FP32)
    return stack, runs


COMMON = {
    "reward",
    "reward_std",
    "reward/unscored",
    "completions/mean_length",
    "completions/clipped_ratio",
    "completions/refused",
    "time/generate",
    "time/score",
    "time/train",
    "loss",
    "grad_norm",
    "lr",
    "tokens",
    "seconds",
}
OWN = {
    "rloo": {"kl", "kl/token", "kl/coefficient", "frac_reward_zero_std", "entropy"},
    "grpo": {"rewards/item/mean", "rewards/length/mean", "clip_ratio/low_mean", "entropy"},
    "ppo": {"explained_variance", "value_loss", "ptx/loss", "cost", "cost/length/mean", "cost/lambda", "kl"},
    "online_dpo": {"rewards/accuracies", "rewards/margins"},
    "best_of_n": set(),
}


@pytest.mark.parametrize("stage", tiny_online.STAGES)
def test_every_kind_of_online_stage_trains_and_logs_what_a_person_wants_to_see(
    everything: tuple[Stack, Runs], stage: str
) -> None:
    stack, runs = everything
    rows = rows_of(stack, runs, stage)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    logged = set().union(*steps)
    assert COMMON | OWN[stage] <= logged, sorted((COMMON | OWN[stage]) - logged)
    evaluated = [row for row in rows if "eval_reward" in row]
    assert evaluated[0]["step"] == 0
    assert evaluated[-1]["step"] == 4
    assert evaluated[-1]["eval_reward_rows"] > 0
    before, after = weights_of(stack, runs, "sft"), weights_of(stack, runs, stage)
    assert before.keys() == after.keys(), "the critic is not part of the policy"
    assert any(not torch.equal(before[name], after[name]) for name in before)
    shown = read_log(runs.folder(stack.stage_key(stage)) / "rollouts.jsonl")
    assert {"prompt", "answer", "ended", "tokens", "reward"} <= set(shown[0])


@pytest.mark.parametrize("stage", ["rloo", "grpo", "ppo"])
def test_sampler_and_trainer_are_equal_to_the_last_bit(everything: tuple[Stack, Runs], stage: str) -> None:
    if native.build() is None:
        pytest.skip("no C++ compiler: decoding and training share no bits")
    steps = [row for row in rows_of(*everything, stage) if "loss" in row]
    assert [row["kl_sample_train_v1"] for row in steps] == [0.0] * 4
    assert [row["kl_sample_train_v2"] for row in steps] == [0.0] * 4


def test_importance_weights_are_measured_where_the_stage_asks_for_them(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    rollouts = {"count": 3, "max_tokens": 12, "importance": {"mode": "sequence_mask", "cap": 3.0}}
    stack, runs = begun(tmp_path, trained, "grpo", rollouts=rollouts)
    app.train(stack, runs, options=FP32)
    steps = [row for row in rows_of(stack, runs, "grpo") if "loss" in row]
    assert {"sampler/ess", "sampler/chi2_sequence", "sampler/limited"} <= set(steps[0])
    assert steps[0]["sampler/ess"] == pytest.approx(1.0), "with the own engine every weight is 1"
    assert steps[0]["kl_sample_train_v2"] < 1e-9


@pytest.mark.parametrize("narrow", [{"top_p": 0.8}, {"top_k": 20}, {"min_p": 0.05}, {"temperature": 0.7}])
def test_truncated_sampling_trains_on_the_distribution_that_was_drawn_from(
    trained: tuple[Stack, Runs], tmp_path: Path, narrow: dict[str, float]
) -> None:
    """Fact 4 of online.md: the mask is kept, so the ratio of the first step is exactly 1."""
    stack, runs = begun(tmp_path, trained, "rloo", rollouts={"count": 3, "max_tokens": 12, **narrow}, steps=2)
    app.train(stack, runs, options=FP32)
    steps = [row for row in rows_of(stack, runs, "rloo") if "loss" in row]
    limit = 0.0 if native.build() is not None else 1e-9
    assert all(row["kl_sample_train_v2"] <= limit for row in each(steps))


def test_the_controllers_of_a_run_move_and_are_saved(everything: tuple[Stack, Runs]) -> None:
    stack, runs = everything
    steps = [row for row in rows_of(stack, runs, "ppo") if "loss" in row]
    assert len({row["kl/coefficient"] for row in steps}) > 1, "kl_target steers the coefficient"
    assert len({row["cost/lambda"] for row in steps}) > 1


def test_a_served_stage_that_was_trained_online_answers(everything: tuple[Stack, Runs]) -> None:
    stack, runs = everything
    runtime = app.StackRuntime(stack, runs)
    try:
        assert runtime.weights("best_of_n").engine.health() is None
    finally:
        runtime.close()


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(
    trained: tuple[Stack, Runs], everything: tuple[Stack, Runs], tmp_path: Path
) -> None:
    again, runs = begun(tmp_path, trained, "rloo")
    app.train(again, runs, options=FP32)
    first = weights_of(*everything, "rloo")
    second = weights_of(again, runs, "rloo")
    assert all(torch.equal(first[name], second[name]) for name in each(first))
    other, more = begun(tmp_path / "other", trained, "rloo", seed=1)
    app.train(other, more, options=FP32)
    third = weights_of(other, more, "rloo")
    assert any(not torch.equal(first[name], third[name]) for name in each(first))


def test_two_processes_train_the_weights_of_one(
    trained: tuple[Stack, Runs], everything: tuple[Stack, Runs], tmp_path: Path
) -> None:
    """FSDP2 under torchrun's environment: the first process samples, all train; a critic has shards of its own."""
    stack, runs = begun(tmp_path, trained, "grpo", "ppo")
    for stage in ("grpo", "ppo"):
        assert stack.stage_key(stage) == everything[0].stage_key(stage)
    together(["-m", *command(tmp_path)[2:]], 2, cwd=tmp_path)
    for stage in ("grpo", "ppo"):
        one, two = weights_of(*everything, stage), weights_of(stack, runs, stage)
        for name in each(one):
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=2e-4)
        losses = [
            [row["loss"] for row in rows_of(s, r, stage) if "loss" in row]
            for s, r in (everything, (stack, runs))
        ]
        assert losses[1] == pytest.approx(losses[0], rel=1e-2, abs=1e-3)


def command(folder: Path) -> list[str]:
    program = [sys.executable, "-m", "demeanor", "train", str(folder / "stack.yaml")]
    return [*program, "--runs", str(folder / "runs"), "--dtype", "fp32"]


def kill_after(folder: Path, seconds: float, wait_for: Path | None = None) -> bool:
    """Start the command, kill it after some seconds (from `wait_for` on, if given); True if it was still running."""
    process = subprocess.Popen(
        command(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while wait_for is not None and not wait_for.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def equal_to_uninterrupted(
    folder: Path, trained: tuple[Stack, Runs], stage: str, moments: list[float], **changes: Any
) -> int:
    """Kill the training of a stage at these moments, finish it, compare; returns how often it was killed."""
    whole, its = begun(folder / "whole", trained, stage, **changes)
    app.train(whole, its, options=FP32)
    stack, runs = begun(folder / "killed", trained, stage, **changes)
    run = runs.folder(stack.stage_key(stage))
    killed = sum(kill_after(folder / "killed", moment, run / LEDGER) for moment in moments)
    subprocess.run(
        command(folder / "killed"),
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    expected, found = weights_of(whole, its, stage), weights_of(stack, runs, stage)
    different = [name for name in each(expected) if not torch.equal(expected[name], found[name])]
    assert not different, f"{stage}: {different}"
    assert not (run / CHECKPOINT).exists()
    metrics = [
        [
            {k: v for k, v in row.items() if "time/" not in k and k != "seconds"}
            for row in rows_of(s, r, stage)
        ]
        for s, r in ((whole, its), (stack, runs))
    ]
    assert metrics[0] == metrics[1], "the log of a killed run is that of an uninterrupted one"
    return killed


def test_a_killed_online_stage_goes_on_bit_for_bit(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    assert equal_to_uninterrupted(tmp_path, trained, "ppo", [0.05, 0.3], steps=10) >= 1


def test_an_adapter_trained_online_goes_on_bit_for_bit_after_a_kill_and_answers(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    adapter = {"adapter": {"rank": 4}, "steps": 8}
    assert equal_to_uninterrupted(tmp_path, trained, "grpo", [0.02], **adapter) == 1
    stack, runs = begun(tmp_path / "killed", trained, "grpo", **adapter)
    assert (runs.model(stack.stage_key("grpo")) / "adapter_config.json").is_file()
    runtime = app.StackRuntime(stack, runs)
    try:
        engine = runtime.weights("grpo").engine
        sft = runtime.weights("sft").engine
        request = Request(tuple(range(20, 30)), Decoding(0, 1.0, 8), frozenset(), prompt_logprobs=0)
        ours, before = ([p.logprob for p in next(iter(e.generate([request])))] for e in (engine, sft))
    finally:
        runtime.close()
    assert len(ours) == len(before) > 0
    assert ours != before


@pytest.mark.experiment
def test_twenty_kills_at_random_moments_end_in_the_same_weights(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    rng = random.Random(0)
    killed = {
        stage: equal_to_uninterrupted(
            tmp_path / stage, trained, stage, [rng.uniform(0, 1.5) for _ in range(10)], steps=60
        )
        for stage in ("ppo", "grpo")
    }
    out = Path("results/online_kills.json")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"killed": killed, "same_weights": True}) + "\n")
    print(f"killed {killed}; same weights and same log each time")
    assert sum(killed.values()) >= 15


@pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")
@pytest.mark.parametrize("stage", ["rloo", "grpo", "ppo"])
def test_the_log_says_that_sampler_and_trainer_agree_to_the_last_bit(
    everything: tuple[Stack, Runs], stage: str
) -> None:
    """online.md 3.3: 0.0 in the log, every step (others: 2e-4); also where bf16 products would be faster here."""
    stack, runs = everything
    steps = [row for row in rows_of(stack, runs, stage) if "loss" in row]
    assert [(row["kl_sample_train_v1"], row["kl_sample_train_v2"]) for row in steps] == [(0.0, 0.0)] * 4


# ---- runs that meet what they should survive, or say ----

SILENT = "def env(task, messages):\n    return None\n\n\nenv.score = lambda task, messages: None\n"


def test_an_iteration_without_any_reward_is_told_once_and_changes_no_weight(
    trained: tuple[Stack, Runs], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "e.py").write_text(SILENT)
    prompts = [{"source": "world:preferences", "limit": 9}]
    rollouts = {"count": 2, "max_tokens": 4, "environment": "e.py:env"}
    stack, runs = begun(
        tmp_path, trained, "grpo", prompts=prompts, reward=["item"], rollouts=rollouts, steps=3
    )
    app.train(stack, runs, options=FP32)
    assert capsys.readouterr().err.count("none of its answers has a reward") == 1
    before, after = weights_of(stack, runs, "sft"), weights_of(stack, runs, "grpo")
    assert all(torch.equal(before[name], after[name]) for name in each(before))


def test_reward_models_of_a_cost_are_normalised_once_too(trained: tuple[Stack, Runs], tmp_path: Path) -> None:
    cost = {"terms": [{"kind": "model", "stages": ["rm"], "normalise": "reference"}], "limit": 0.0}
    stack, runs = begun(tmp_path, trained, "rloo", cost=cost, steps=1)
    app.train(stack, runs, options=FP32)
    (row,) = [row for row in rows_of(stack, runs, "rloo") if "loss" in row]
    assert abs(row["cost"]) < 1.5, "12 answers of a distribution with mean 0 and deviation 1"
    kept = json.loads((runs.folder(stack.stage_key("rloo")) / "cost-normalisation.json").read_text())
    assert kept["model"]["rm"][1] > 0


def test_ctrl_c_while_an_iteration_is_sampled_stops_before_it_is_trained_and_goes_on_alike(
    trained: tuple[Stack, Runs],
    everything: tuple[Stack, Runs],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack, runs = begun(tmp_path, trained, "ppo")
    sample = online.Trainer.sample

    def interrupted(self: online.Trainer, number: int) -> Any:
        found = sample(self, number)
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(online.Trainer, "sample", interrupted)
        with pytest.raises(Interrupted, match="stopped after step 2 of 4") as stopped:
            app.train(stack, runs, options=FP32)
    assert stopped.value.exit_code == 130
    app.train(stack, runs, options=FP32)
    first, second = weights_of(*everything, "ppo"), weights_of(stack, runs, "ppo")
    assert all(torch.equal(first[name], second[name]) for name in each(first))
    costs = [
        [row["cost/lambda"] for row in rows_of(*x, "ppo") if "loss" in row]
        for x in (everything, (stack, runs))
    ]
    assert costs[0] == costs[1], "the multiplier moved once for the iteration that was drawn twice"


def test_a_critic_that_starts_from_the_reward_model_gets_the_measured_shift_and_scale(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[float, float]] = []

    def noted(policy: Any, critic: Any, shift: float, scale: float) -> ActorCritic:
        made.append((shift, scale))
        return ActorCritic(policy, critic, shift, scale)

    monkeypatch.setattr("demeanor.training.stage.ActorCritic", noted)
    reward = [{"kind": "model", "stages": ["rm"], "normalise": "reference", "weight": 2.0}]
    stack, runs = begun(tmp_path, trained, "ppo", reward=reward, steps=1)
    app.train(stack, runs, options=FP32)
    kept = json.loads((runs.folder(stack.stage_key("ppo")) / "normalisation.json").read_text())
    shift, scale = kept["model"]["rm"]
    assert made == [(shift, scale / 2.0)]
    assert shift != 0
