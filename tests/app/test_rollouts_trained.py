"""Stages that train on episodes: through the stack's own layers and an environment, and from a vLLM server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demeanor import app
from demeanor.core.errors import SpecError, UpstreamError
from demeanor.engine import vllm
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.training.runs import CHECKPOINT, Runs
from demeanor.training.stage import RunOptions
from tests.app import tiny_online
from tests.app.test_online_stages import begun, rows_of, weights_of
from tests.conftest import each
from tests.engine.fake_vllm import FakeVllm, serving

SURE = '''
from demeanor.core.types import Message

class Sure:
    """Asks once more; an answer with a digit is worth a point."""

    def __call__(self, task, messages):
        if "Sure?" in messages[-2].content:
            return None
        return (Message("user", "Sure?"),)

    def score(self, task, messages):
        return float(any(c.isdigit() for c in messages[-1].content))
'''
FP32 = RunOptions(dtype="fp32")
ROLLOUTS: dict[str, Any] = {"count": 3, "max_tokens": 10}


def trained_stage(
    folder: Path, trained: tuple[Stack, Runs], rollouts: dict[str, Any], **changes: Any
) -> tuple[Stack, Runs]:
    stack, runs = begun(folder, trained, "grpo", rollouts={**ROLLOUTS, **rollouts}, steps=2, **changes)
    app.train(stack, runs, only=["grpo"], options=FP32)
    return stack, runs


def environment(folder: Path) -> str:
    (folder / "sure.py").write_text(SURE)
    return "sure.py:Sure"


def test_a_stage_trains_through_the_layers_it_is_served_with_and_an_environment(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    declared = {"layers": ["policy", "tools", "prompt"], "environment": environment(tmp_path), "turns": 2}
    stack, runs = trained_stage(tmp_path, trained, declared)
    rows = each(row for row in rows_of(stack, runs, "grpo") if "loss" in row)
    assert {row["completions/failed"] for row in rows} == {0.0}
    assert all(row["rewards/item/mean"] >= 0 for row in rows)
    assert {row["kl_sample_train_v2"] for row in rows} == {0.0}, "the sampler's log-probs are the trainer's"
    shown = (runs.folder(stack.stage_key("grpo")) / "rollouts.jsonl").read_text()
    first = json.loads(shown.splitlines()[0])
    assert first
    before = load_file(runs.model(stack.stage_key("sft")) / "model.safetensors")
    after = weights_of(stack, runs, "grpo")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_key_of_a_stage_depends_on_the_environments_code_and_on_the_layers(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    def key(**rollouts: Any) -> str:
        return begun(tmp_path, trained, "grpo", rollouts={**ROLLOUTS, **rollouts})[0].stage_key("grpo")

    name = environment(tmp_path)
    declared = {"layers": ["prompt"], "environment": name, "turns": 2}
    first = key(**declared)
    assert key(**declared) == first
    (tmp_path / "sure.py").write_text(SURE + "\n# changed\n")
    assert key(**declared) != first
    (tmp_path / "sure.py").write_text(SURE)
    stack_file = begun(tmp_path, trained, "grpo", rollouts={**ROLLOUTS, **declared})[0]
    (tmp_path / "system.md").write_text("Another prompt.\n")
    assert app.load_stack(stack_file.path).stage_key("grpo") != first


def server_of(trained: tuple[Stack, Runs]) -> FakeVllm:
    stack, runs = trained
    folder = runs.model(stack.stage_key("sft"))
    return FakeVllm(folder, tokenizers.load(folder), context=256)


@pytest.fixture
def fake(trained: tuple[Stack, Runs], monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    monkeypatch.setattr(vllm, "WAIT_S", 0.01)
    return server_of(trained)


@pytest.fixture(scope="module")
def far(trained: tuple[Stack, Runs], tmp_path_factory: pytest.TempPathFactory) -> tuple[Stack, Runs]:
    """A stage that was trained on what a server drew."""
    with serving(server_of(trained)) as url:
        return trained_stage(tmp_path_factory.mktemp("far"), trained, {"url": url})


def steps_of(trained: tuple[Stack, Runs]) -> list[dict[str, Any]]:
    return each(row for row in rows_of(*trained, "grpo") if "loss" in row)


def test_a_stage_trains_on_what_a_server_draws_as_on_its_own_draws(
    trained: tuple[Stack, Runs], tmp_path: Path, far: tuple[Stack, Runs]
) -> None:
    """The server of the tests draws with our engine, so the rewards are those of rollouts at home."""
    assert max(abs(row["kl_sample_train_v1"]) for row in steps_of(far)) < 1e-5
    home = trained_stage(tmp_path, trained, {})
    assert [row["reward"] for row in steps_of(far)] == pytest.approx(
        [row["reward"] for row in steps_of(home)]
    )


def test_an_adapter_trains_on_what_a_server_draws_with_it(
    trained: tuple[Stack, Runs], tmp_path: Path, fake: FakeVllm
) -> None:
    with serving(fake) as url:
        found = trained_stage(tmp_path, trained, {"url": url}, adapter={"kind": "lora", "rank": 2})
    assert max(abs(row["kl_sample_train_v1"]) for row in steps_of(found)) < 1e-5
    assert fake.paths().count("/v1/load_lora_adapter") >= 2
    assert "/collective_rpc" not in fake.paths()


def test_a_server_that_fails_leaves_a_run_that_goes_on_when_it_is_back(
    trained: tuple[Stack, Runs], tmp_path: Path, fake: FakeVllm, far: tuple[Stack, Runs]
) -> None:
    with serving(fake) as url:
        settings = {"url": url, "server": {"retries": 1}}
        stack, runs = begun(tmp_path, trained, "grpo", rollouts={**ROLLOUTS, **settings}, steps=2)
        answer, updates = fake.answer, []

        def failing(path: str, body: dict[str, Any]) -> tuple[int, Any]:
            updates.extend([path] if path == "/collective_rpc" else [])
            return (500, {"error": "no more"}) if len(updates) > 1 else answer(path, body)

        fake.answer = failing  # type: ignore[method-assign]
        with pytest.raises(UpstreamError, match=r"HTTP 500: no more; sent 2 times.*run the same command"):
            app.train(stack, runs, only=["grpo"], options=FP32)
        assert not runs.complete(stack.stage_key("grpo"))
        fake.answer = answer  # type: ignore[method-assign]
        app.train(stack, runs, only=["grpo"], options=FP32)
    assert not (runs.folder(stack.stage_key("grpo")) / CHECKPOINT).exists()
    after = weights_of(stack, runs, "grpo")
    different = [
        name for name, weight in weights_of(*far, "grpo").items() if not torch.equal(weight, after[name])
    ]
    assert after
    assert different == [], "the weights of a run that nothing disturbed"


def test_importance_weights_correct_a_server_that_drew_from_other_weights(
    trained: tuple[Stack, Runs], tmp_path: Path, fake: FakeVllm
) -> None:
    fake.stale = True
    importance = {"mode": "sequence_truncate", "cap": 2.0}
    with serving(fake) as url:
        declared = {"url": url, "server": {"tolerance": 50.0}, "importance": importance}
        changes = {"optim": {"lr": 1e-2, "warmup": 0.0}}
        stack, runs = trained_stage(tmp_path, trained, declared, **changes)
    first, second = each(row for row in rows_of(stack, runs, "grpo") if "loss" in row)
    assert first["sampler/ess"] == pytest.approx(1.0, abs=1e-4)
    assert abs(first["kl_sample_train_v1"]) < 1e-5
    assert second["sampler/ess"] < 0.999, "the server still has the weights before the first step"
    assert second["kl_sample_train_v2"] > 1e-3


@pytest.mark.parametrize(
    ("stage", "rollouts", "told"),
    [
        ("grpo", {"turns": 2}, "rollouts.turns: got 2 turns without an environment"),
        ("grpo", {"server": {"retries": 9}}, "rollouts.server: is for rollouts of a server; set url"),
        ("grpo", {"url": "http://x/v1", "top_p": 0.9}, "rollouts.top_k: a vLLM server tells the tokens"),
        ("online_dpo", {"importance": {"mode": "token_mask"}}, "rollouts.importance: weights are for"),
        ("grpo", {"layers": ["polcy"]}, "rollouts.layers: unknown layer 'polcy'. Did you mean 'policy'?"),
        ("grpo", {"layers": ["record"]}, "rollouts.layers: 'record' (record) is about operation"),
        ("grpo", {"environment": "gone.py:f"}, "rollouts.environment: no such file"),
        ("grpo", {"environment": "gone.py"}, "rollouts.environment: got 'gone.py', wanted FILE.py:FUNCTION"),
        ("grpo", {"importance": {"mode": "token_clip"}}, "rollouts.importance.mode"),
    ],
)
def test_settings_of_rollouts_that_cannot_work_are_found_when_the_stack_is_read(
    tmp_path: Path, stage: str, rollouts: dict[str, Any], told: str
) -> None:
    path = tiny_online.write(tmp_path, stage, rollouts={**ROLLOUTS, **rollouts})
    with pytest.raises(SpecError, match=re.escape(told)):
        app.load_stack(path)


def test_how_a_server_is_reached_is_no_part_of_a_stages_key(tmp_path: Path) -> None:
    def key(**rollouts: Any) -> str:
        path = tiny_online.write(tmp_path, "grpo", rollouts={**ROLLOUTS, **rollouts})
        return app.load_stack(path).stage_key("grpo")

    far = key(url="http://a/v1")
    assert key(url="http://b:8000/v1", server={"retries": 9, "timeout_s": 9.0}) == far
    assert len({far, key(), key(max_tokens=9), key(temperature=0.9)}) == 4


def test_an_environment_scores_prompts_that_have_no_items(tmp_path: Path) -> None:
    prompts = [{"source": "world:preferences", "limit": 40}]
    scored = {**ROLLOUTS, "environment": environment(tmp_path)}
    path = tiny_online.write(tmp_path, "grpo", rollouts=scored, prompts=prompts)
    assert app.load_stack(path).stage("grpo").name == "grpo"
    path = tiny_online.write(tmp_path, "grpo", rollouts=ROLLOUTS, prompts=prompts)
    with pytest.raises(SpecError, match="no prompt source has `items: true`"):
        app.load_stack(path)
