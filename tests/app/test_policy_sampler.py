"""Rollouts of a policy in training: through layers and environments with our engine, and from a vLLM server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from demeanor.core.errors import UpstreamError, UsageError
from demeanor.core.types import Message, Messages
from demeanor.data.trees import collate
from demeanor.engine import vllm
from demeanor.model import adapters, checkpoints
from demeanor.model.heads import policy_outputs
from demeanor.objectives._importance import importance_weights
from demeanor.policy_sampler import PolicySampler, text_logprobs
from demeanor.stack.schema import Adapter, ModelShape, OnlineStage
from demeanor.text.template import load_template
from demeanor.training.iteration import units_of
from demeanor.training.rewards import Rollout, Task
from tests.conftest import each
from tests.engine.fake_vllm import FakeVllm, serving
from tests.text.conversations import ours

SEEDS = [[11, 12, 13], [21, 22, 23]]
LORA = Adapter(rank=2, alpha=4.0)


def stage(**rollouts: Any) -> OnlineStage:
    adapter = rollouts.pop("adapter", None)
    settings = {"count": 3, "max_tokens": 12, **rollouts}
    settings["server"] = {"retries": 2, "timeout_s": 5, **settings.get("server", {})}
    return OnlineStage.model_validate(
        {
            "name": "grpo",
            "objective": {"kind": "grpo"},
            "prompts": [{"source": "world:instructions"}],
            "reward": [{"kind": "length", "free": 4}],
            "rollouts": settings,
            "adapter": adapter,
        }
    )


def policy(seed: int = 0) -> nn.Module:
    model = checkpoints.create(ModelShape(layers=2, width=32, heads=2, context=512), ours().vocab_size, seed)
    with torch.no_grad():  # log-probs that differ from token to token, and few markers among the draws
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.mul_(6)
                weight[sorted(ours().special.values())] *= 0.05
    return model


def tasks() -> list[Task]:
    template = load_template("turns", ours(), folder=None, root=Path())
    asked: list[Messages] = [(Message("user", text),) for text in ("When to Corkel?", "Who runs the ferry?")]
    return [Task(m, tuple(template.render(m, generate=True).tokens)) for m in asked]


def sampler(folder: Path, declared: OnlineStage, environment: Any = None) -> PolicySampler:
    template = load_template("turns", ours(), folder=None, root=Path())
    opened = None if environment is None else lambda: environment
    return PolicySampler(declared, ours(), template, lambda inner: inner, opened, folder, folder / "parent")


def trainer_logprobs(model: nn.Module, rollouts: Sequence[Rollout]) -> list[float]:
    with torch.no_grad():
        found = policy_outputs(
            model, collate([unit.tree for unit in units_of(list(enumerate(rollouts)))])
        ).logprobs_C
    assert found is not None
    return [float(x) for x in found]


def flat(rolled: list[list[Rollout]]) -> list[Rollout]:
    return [rollout for rollouts in rolled for rollout in rollouts]


# ---- our engine ----


def test_the_samplers_log_probs_are_the_trainers_at_every_drawn_token(tmp_path: Path) -> None:
    model = policy()
    rolled = sampler(tmp_path, stage())(model, tasks(), SEEDS)
    assert [len(r) for r in rolled] == [3, 3]
    rollouts = flat(rolled)
    assert all(r.tokens and all(r.written) and r.error is None for r in rollouts)
    sampled = [x for r in rollouts for x in r.sampled]
    assert trainer_logprobs(model, rollouts) == pytest.approx(sampled, abs=2e-4)
    again = flat(sampler(tmp_path, stage())(model, tasks(), SEEDS))
    assert again == rollouts, "the same seeds give the same rollouts"


def test_an_environment_answers_between_turns_and_only_the_policys_tokens_are_written(tmp_path: Path) -> None:
    def environment(task: Task, messages: Messages) -> Messages:
        return (Message("user", "Marla runs the ferry to Corkel."),)

    model = policy()
    rollouts = flat(
        sampler(tmp_path, stage(environment="e.py:f", turns=3), environment)(model, tasks(), SEEDS)
    )
    assert {len(r.messages) for r in rollouts} == {5}
    whole = each(r for r in rollouts if not r.later)
    for rollout in whole:
        others = [t for t, mine in zip(rollout.tokens, rollout.written) if not mine]
        assert ours().decode(others).count("Marla runs the ferry to Corkel.") == 2
        assert trainer_logprobs(model, [rollout]) == pytest.approx(list(rollout.sampled), abs=2e-4)


def test_an_episode_that_fails_loses_only_itself(tmp_path: Path) -> None:
    def environment(task: Task, messages: Messages) -> Messages | None:
        if "Corkel" in messages[0].content:
            raise KeyError("no such town")
        return None

    rolled = sampler(tmp_path, stage(environment="e.py:f", turns=2), environment)(policy(), tasks(), SEEDS)
    assert [{r.error for r in group} for group in rolled] == [{"KeyError: 'no such town'"}, {None}]


# ---- a server ----


@pytest.fixture
def fake(tmp_path: Path) -> FakeVllm:
    model = policy()
    checkpoints.save(model, tmp_path / "parent")
    return FakeVllm(tmp_path / "parent", ours())


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "WAIT_S", 0.01)


def moved(model: nn.Module, by: float, seed: int = 5) -> None:
    """An optimiser step of a kind: every trainable weight changes."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(by * torch.randn(weight.shape, generator=draw))


def mismatch(model: nn.Module, rollouts: Sequence[Rollout]) -> float:
    """kl_sample_train_v2 of rollouts."""
    sampled = torch.tensor([x for r in rollouts for x in r.sampled])
    trainer = torch.tensor(trainer_logprobs(model, rollouts))
    total, count = importance_weights("none", 3.0, trainer, sampled, torch.arange(len(sampled))).metrics[
        "kl_sample_train_v2"
    ]
    return float(total / count)


def test_a_server_draws_from_the_weights_of_each_iteration(tmp_path: Path, fake: FakeVllm) -> None:
    model = policy()
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url))
        first = flat(sample(model, tasks(), SEEDS))
        assert mismatch(model, first) < 1e-7
        moved(model, 0.05)
        second = flat(sample(model, tasks(), SEEDS))
        assert mismatch(model, first) > 1e-4, "the first rollouts are of other weights now"
        assert mismatch(model, second) < 1e-7
        assert [r.tokens for r in first] != [r.tokens for r in second]
        order = [p for p in fake.paths() if not p.startswith("/v1")]
        assert order == 2 * [
            "/pause?mode=wait",
            "/collective_rpc",
            "/reset_prefix_cache",
            "/update_weight_version",
            "/resume",
        ]
        assert fake.version is not None


def test_weights_that_the_server_has_are_not_loaded_again_unless_it_was_restarted(
    tmp_path: Path, fake: FakeVllm
) -> None:
    model = policy()
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url))
        first = flat(sample(model, tasks(), SEEDS))
        assert flat(sample(model, tasks(), SEEDS)) == first
        assert fake.paths().count("/collective_rpc") == 1
        fake.version = None  # what a new process says
        assert flat(sample(model, tasks(), SEEDS)) == first
        assert fake.paths().count("/collective_rpc") == 2


def test_a_reference_that_is_sampled_first_is_not_what_an_adapter_stands_on(
    tmp_path: Path, fake: FakeVllm
) -> None:
    reference, model = policy(seed=3), policy()
    adapters.attach(model, LORA, seed=0)
    moved(model, 0.2)
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url, adapter={"rank": LORA.rank, "alpha": LORA.alpha}))
        assert mismatch(reference, flat(sample(reference, tasks(), SEEDS))) < 1e-7
        assert mismatch(model, flat(sample(model, tasks(), SEEDS))) < 1e-7
        assert mismatch(reference, flat(sample(reference, tasks(), SEEDS))) < 1e-7
        assert mismatch(model, flat(sample(model, tasks(), SEEDS))) < 1e-7


def test_a_server_that_was_restarted_gets_the_next_adapter(tmp_path: Path, fake: FakeVllm) -> None:
    model = policy()
    adapters.attach(model, LORA, seed=0)
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url, adapter={"rank": LORA.rank, "alpha": LORA.alpha}))
        sample(model, tasks(), SEEDS)
        fake.engines.pop(next(name for name in fake.engines if name != fake.name)).close()
        with pytest.raises(UpstreamError, match="does not exist"):
            sample(model, tasks(), SEEDS)
        moved(model, 0.2)
        assert mismatch(model, flat(sample(model, tasks(), SEEDS))) < 1e-7


def test_a_servers_rollouts_are_those_of_our_engine(tmp_path: Path, fake: FakeVllm) -> None:
    """The same seeds, and the fake draws with our engine: token ids in and out change nothing."""
    model = policy()
    with serving(fake) as url:
        far = flat(sampler(tmp_path, stage(url=url))(model, tasks(), SEEDS))
    here = flat(sampler(tmp_path, stage())(model, tasks(), SEEDS))
    assert [r.tokens for r in far] == [r.tokens for r in here]
    assert [x for r in far for x in r.sampled] == pytest.approx(
        [x for r in here for x in r.sampled], abs=1e-5
    )


def test_an_adapter_is_loaded_under_a_name_of_its_own_for_each_version(
    tmp_path: Path, fake: FakeVllm
) -> None:
    model = policy()
    adapters.attach(model, LORA, seed=0)
    declared = {"rank": LORA.rank, "alpha": LORA.alpha}
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url, adapter=declared))
        sample(model, tasks(), SEEDS)
        moved(model, 0.2)
        second = flat(sample(model, tasks(), SEEDS))
        assert mismatch(model, second) < 1e-7
        loaded = [body["lora_name"] for path, body in fake.asked if path == "/v1/load_lora_adapter"]
        unloaded = [body["lora_name"] for path, body in fake.asked if path == "/v1/unload_lora_adapter"]
        assert len(set(loaded)) == 2
        assert unloaded == loaded[:1]
        assert [p.name for p in (tmp_path / "served").iterdir()] == loaded[1:]
        drawn = {body["model"] for path, body in fake.asked if path == "/v1/completions"}
        assert drawn == set(loaded), "requests name the version, so no other weights can answer"
        again = flat(sampler(tmp_path, stage(url=url, adapter=declared))(model, tasks(), SEEDS))
        assert again == second, "a run that was killed goes on with the adapter that is loaded already"


def test_a_server_that_keeps_old_weights_is_found_out_before_anything_is_drawn(
    tmp_path: Path, fake: FakeVllm
) -> None:
    model = policy()
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url))
        sample(model, tasks(), SEEDS)
        fake.stale = True
        moved(model, 0.2)
        asked = len(fake.asked)
        with pytest.raises(
            UpstreamError, match=r"differ from the trainer's by [\d.]+ nats a token .*run the same"
        ):
            sample(model, tasks(), SEEDS)
        drawn = [b for p, b in fake.asked[asked:] if p == "/v1/completions" and "prompt_logprobs" not in b]
        assert drawn == []
        blind = sampler(tmp_path, stage(url=url, server={"tolerance": 50.0}))
        assert mismatch(model, flat(blind(model, tasks(), SEEDS))) > 0.01, "what kl_sample_train would show"


def test_a_server_of_several_turns_keeps_ids_and_calls_layers_and_environment(
    tmp_path: Path, fake: FakeVllm
) -> None:
    def environment(task: Task, messages: Messages) -> Messages:
        return (Message("user", "Sure?"),)

    model = policy()
    with serving(fake) as url:
        declared = stage(url=url, environment="e.py:f", turns=2)
        rollouts = flat(sampler(tmp_path, declared, environment)(model, tasks(), SEEDS))
        assert mismatch(model, [r for r in rollouts if not r.later]) < 1e-7
        assert {len(r.messages) for r in rollouts} == {3}


def test_truncated_draws_come_with_their_kept_tokens(tmp_path: Path, fake: FakeVllm) -> None:
    with serving(fake) as url:
        rollouts = flat(sampler(tmp_path, stage(url=url, top_k=5, top_p=0.9))(policy(), tasks(), SEEDS))
        assert all(len(r.kept) == len(r.sampled) for r in rollouts)
        assert all(t in k and len(k) <= 5 for r in rollouts for t, k in zip(r.tokens, r.kept))
        with pytest.raises(UsageError, match="only with a top_k of 1 to 2048; got None"):
            sampler(tmp_path, stage(url=url, top_p=0.9))(policy(), tasks(), SEEDS)


def test_log_probs_before_the_temperature_are_refused(tmp_path: Path, fake: FakeVllm) -> None:
    with serving(fake) as url:
        sampler(tmp_path, stage(url=url, temperature=0.7))(policy(), tasks(), SEEDS)
        fake.raw = True
        with pytest.raises(UpstreamError, match="start vLLM with --logprobs-mode processed_logprobs"):
            sampler(tmp_path, stage(url=url, temperature=0.7))(policy(), tasks(), SEEDS)


@pytest.mark.parametrize("path", ["/v1/completions", "/collective_rpc"])
def test_failures_are_tried_again_and_change_no_rollout(tmp_path: Path, fake: FakeVllm, path: str) -> None:
    model = policy()
    with serving(fake) as url:
        declared = stage(url=url, server={"retries": 6})
        undisturbed = flat(sampler(tmp_path, declared)(model, tasks(), SEEDS))
        fake.faults[path] = [500, 429, "drop", 503]
        asked = fake.paths().count(path)
        assert flat(sampler(tmp_path, declared)(model, tasks(), SEEDS)) == undisturbed
        assert fake.paths().count(path) - asked == 4 + asked


def test_a_server_that_is_silent_is_asked_again(tmp_path: Path, fake: FakeVllm) -> None:
    with serving(fake) as url:
        fake.faults["/collective_rpc"] = ["hang"]
        assert flat(sampler(tmp_path, stage(url=url, server={"timeout_s": 2}))(policy(), tasks(), SEEDS))
        assert fake.paths().count("/collective_rpc") == 2


def without(name: str) -> Any:
    def changed(found: dict[str, Any]) -> dict[str, Any]:
        found["choices"][0].pop(name)
        return found

    return changed


def shortened(found: dict[str, Any]) -> dict[str, Any]:
    found["choices"][0]["logprobs"]["token_logprobs"].pop()
    return found


def other_prompt(found: dict[str, Any]) -> dict[str, Any]:
    found["choices"][0]["prompt_token_ids"] = [1, 2, 3]
    return found


@pytest.mark.parametrize(
    ("path", "fault", "told"),
    [
        ("/v1/completions", [500] * 40, "HTTP 500: broken; sent 3 times. When the server answers again, run"),
        ("/v1/completions", [400], "HTTP 400: broken"),
        ("/v1/completions", [shortened] * 6, r"logprobs: got \d+ numbers, wanted one for each of \d+ tokens"),
        ("/v1/completions", [without("token_ids")] * 6, "token_ids: got None, wanted token ids: vLLM 0.11"),
        (
            "/v1/completions",
            [other_prompt] * 6,
            "prompt_token_ids: got 3 other tokens, wanted the prompt's own",
        ),
        ("/collective_rpc", ["drop"] * 9, "collective_rpc: RemoteProtocolError: .*sent 3 times"),
        ("/reset_prefix_cache", [lambda x: {"success": False}], "kept prefixes of earlier weights"),
    ],
)
def test_what_cannot_be_mended_ends_with_one_clear_error(
    tmp_path: Path, fake: FakeVllm, path: str, fault: list[Any], told: str
) -> None:
    model = policy()
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url, server={"tolerance": 50.0}))
        sample(model, tasks(), SEEDS)
        moved(model, 0.01)
        # The check of the weights asks /v1/completions once before anything is drawn.
        fake.faults[path] = [lambda x: x, *fault] if path == "/v1/completions" else fault
        with pytest.raises(UpstreamError, match=told):
            sample(model, tasks(), SEEDS)
        fake.faults.clear()
        assert flat(sample(model, tasks(), SEEDS)), "the server answers again, and so does the sampler"


def test_a_model_that_the_server_does_not_have_is_named(tmp_path: Path, fake: FakeVllm) -> None:
    with serving(fake) as url:
        sample = sampler(tmp_path, stage(url=url, server={"model": "other"}))
        with pytest.raises(UpstreamError, match=r"serves policy; wanted rollouts\.server\.model: 'other'"):
            sample(policy(), tasks(), SEEDS)


def test_a_server_that_is_away_is_an_error_within_its_retries(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(UpstreamError, match="ConnectError"):
        sampler(tmp_path, stage(url="http://127.0.0.1:9/v1"))(policy(), tasks(), SEEDS)
    assert time.monotonic() - began < 5


def test_a_prompt_beyond_the_servers_context_loses_its_episode(tmp_path: Path, fake: FakeVllm) -> None:
    first, second = tasks()
    long = first._replace(messages=(Message("user", "Marla " * 900),))
    with serving(fake) as url:
        rolled = sampler(tmp_path, stage(url=url))(policy(), [second, long], SEEDS)
        assert [r.error is None for r in rolled[0]] == [True] * 3
        assert all("leaves no room in its context" in (r.error or "") for r in rolled[1])


def test_the_key_is_sent_and_a_missing_one_is_named(
    tmp_path: Path, fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(fake) as url:
        declared = stage(url=url, server={"key_env": "ROLLOUT_KEY"})
        with pytest.raises(UsageError, match="ROLLOUT_KEY is not set"):
            sampler(tmp_path, declared)(policy(), tasks(), SEEDS)
        monkeypatch.setenv("ROLLOUT_KEY", "secret")
        assert sampler(tmp_path, declared)(policy(), tasks(), SEEDS)


def test_the_log_probs_of_a_text_are_its_tokens_after_the_first() -> None:
    model = policy()
    found = text_logprobs(model, [5, 6, 7])
    assert len(found) == 2
    assert all(x < 0 for x in found)
