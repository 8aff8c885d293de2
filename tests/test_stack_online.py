"""Online stages in stack.yaml: what is refused before anything is sampled, and what the error says to write."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from demeanor.core import registry
from demeanor.core.errors import SpecError
from tests.test_stack import SOUND, load

KINDS = [
    kind
    for kind in registry.known("demeanor.objectives")
    if registry.entry("demeanor.objectives", kind).ONLINE is not None
]


def with_online(objective: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A sound stack whose last stage is an online one."""
    raw = deepcopy(SOUND)
    stage = {
        "name": "rl",
        "objective": objective,
        "parent": "sft",
        "prompts": [{"source": "world:instructions"}],
        "reward": [{"kind": "model", "stages": ["rm"]}],
        **settings,
    }
    raw["weights"]["stages"].append(stage)
    return raw


@pytest.mark.parametrize("kind", KINDS)
def test_every_online_objective_is_accepted_with_prompts_and_a_reward(tmp_path: Path, kind: str) -> None:
    stack = load(tmp_path, with_online({"kind": kind}))
    assert stack.objective_kind("rl") == kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ppo"])
def test_a_group_of_one_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(SpecError) as error:
        load(tmp_path, with_online({"kind": kind}, rollouts={"count": 1}))
    assert "weights.stages[3].rollouts.count" in str(error.value)
    assert "at least 2" in str(error.value)


def test_ppo_takes_one_completion_a_prompt(tmp_path: Path) -> None:
    stack = load(tmp_path, with_online({"kind": "ppo"}, rollouts={"count": 1}))
    assert stack.objective_kind("rl") == "ppo"


LENGTH = {"kind": "length", "free": 8}


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        ([LENGTH], "names no reward model; write value_init: zero"),
        (
            [{"kind": "model", "stages": ["rm"]}, {"kind": "model", "stages": ["rm"], "weight": 2}],
            "names 2 reward models (rm, rm); write value_init: zero",
        ),
    ],
)
def test_a_critic_that_starts_from_the_reward_model_needs_exactly_one(
    tmp_path: Path, reward: list[dict[str, Any]], says: str
) -> None:
    with pytest.raises(SpecError) as error:
        load(tmp_path, with_online({"kind": "ppo"}, reward=reward))
    assert "weights.stages[3].objective.value_init" in str(error.value)
    assert says in str(error.value)
    stack = load(tmp_path, with_online({"kind": "ppo", "value_init": "zero"}, reward=reward))
    assert stack.objective_kind("rl") == "ppo"


def test_a_reward_model_beside_other_terms_can_start_the_critic(tmp_path: Path) -> None:
    reward = [{"kind": "model", "stages": ["rm"]}, LENGTH]
    assert load(tmp_path, with_online({"kind": "ppo"}, reward=reward)).objective_kind("rl") == "ppo"


def test_a_wrong_setting_is_reported_once_and_not_as_a_wrong_critic(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        load(tmp_path, with_online({"kind": "ppo", "gae_lambd": 0.9}, reward=[LENGTH]))
    assert "Did you mean 'gae_lambda'?" in str(error.value)
    assert "the critic starts" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"num_generations": 4}, "rollouts: {count: 4}"),
        ({"max_completion_length": 64}, "rollouts: {max_tokens: 64}"),
        ({"top_p": 0.9}, "rollouts: {top_p: 0.9}"),
        ({"beta": 0.04}, "objective: {kl_coef: 0.04}"),
        ({"epsilon": 0.2}, "objective: {clip_low: 0.2}"),
        ({"kl_coef": 0.04}, "objective: {kind: grpo, kl_coef: 0.04}"),
        ({"num_iterations": 2}, "Here it is called: inner_epochs: 2"),
    ],
)
def test_a_setting_of_trls_at_the_stage_is_answered_with_the_line_to_write(
    tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError) as error:
        load(tmp_path, with_online({"kind": "grpo"}, **given))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"kind": "grpo", "beta": 0.04}, "Here it is called: objective: {kl_coef: 0.04}"),
        ({"kind": "ppo", "beta": 0.04}, "Here it is called: objective: {kl_coef: 0.04}"),
        ({"kind": "rloo", "num_generations": 4}, "Here it is called: rollouts: {count: 4}"),
        ({"kind": "rloo", "scale_rewards": "group"}, "Known: clip_high, clip_low, kl_coef"),
        ({"kind": "dpo", "beta": 0.1, "lable_smoothing": 0.1}, "Did you mean 'label_smoothing'?"),
    ],
)
def test_a_setting_of_trls_in_the_objective_is_answered_with_our_name(
    tmp_path: Path, objective: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError) as error:
        load(tmp_path, with_online(objective))
    assert says in str(error.value)


# ---- numbers and names that cannot be meant ----

ENDLESS, NO_NUMBER = float("inf"), float("nan")
HOSTILE: list[tuple[dict[str, Any], str, str]] = [
    ({"rollouts": {"count": 10**9}}, "rollouts.count", "16,000,000,000 answers an iteration"),
    ({"rollouts": {"max_tokens": 10**12}}, "rollouts.max_tokens", "wanted at most model.context"),
    ({"rollouts": {"temperature": NO_NUMBER}}, "rollouts.temperature", "got nan"),
    ({"rollouts": {"importance": {"cap": ENDLESS}}}, "rollouts.importance.cap", "a finite number"),
    ({"rollouts": {"url": "http://me:secret@host:1"}}, "rollouts.url", "match pattern"),
    ({"rollouts": {"url": "file:///etc/passwd"}}, "rollouts.url", "match pattern"),
    ({"rollouts": {"environment": "../../nowhere.py:f"}}, "rollouts.environment", "no such file"),
    ({"rollouts": {"layers": "policy"}}, "rollouts.layers", "a valid tuple"),
    ({"steps": 3, "epochs": 2}, "steps", "which say the same; leave one out"),
    ({"minibatches": 17}, "minibatches", "at most batch_rows = 16"),
    ({"optim": {"lr": ENDLESS}}, "optim.lr", "a finite number"),
    ({"ptx": {"data": []}}, "ptx.data", "wanted at least one"),
    ({"reward": None}, "reward", "got nothing"),
    ({"reward": [{"kind": "model", "stages": ["rm", "rm"]}]}, "reward[0].stages", "twice"),
    ({"reward": [LENGTH | {"weight": NO_NUMBER}]}, "reward[0].weight", "a finite number"),
    ({"reward": [LENGTH, {"kind": "rules", "rules": "."}]}, "reward[1].rules", "no such file"),
    (
        {"cost": {"terms": [LENGTH, {"kind": "rules", "rules": "no.yaml"}]}},
        "cost.terms[1].rules",
        "no such file",
    ),
    ({"cost": {"terms": [LENGTH], "least": 5, "most": 1}}, "cost.initial", "wanted them in this order"),
    ({"prompts": [{"source": "world:instructions", "weight": 3}]}, "prompts[0].weight", "asked once a pass"),
    (
        {"prompts": [{"source": "world:behaviour", "items": True, "columns": {"a": "b"}}]},
        "prompts[0].columns",
        "is for rows",
    ),
]


@pytest.mark.parametrize(("settings", "place", "says"), HOSTILE, ids=[place for _, place, _ in HOSTILE])
def test_what_cannot_be_meant_is_one_error_with_its_place(
    tmp_path: Path, settings: dict[str, Any], place: str, says: str
) -> None:
    with pytest.raises(SpecError) as error:
        load(tmp_path, with_online({"kind": "rloo"}, **settings))
    told = str(error.value)
    assert f"weights.stages[3].{place}: " in told
    assert says in told
    assert "mistakes" not in told, "one mistake is told once"


def test_all_mistakes_of_an_online_stage_are_told_at_once(tmp_path: Path) -> None:
    wrong = {"steps": 3, "epochs": 2, "minibatches": 17, "rollouts": {"count": 10**9}, "ptx": {"data": []}}
    with pytest.raises(SpecError, match="4 mistakes"):
        load(tmp_path, with_online({"kind": "rloo"}, **wrong))


def test_axes_and_files_of_suites_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    from demeanor import app
    from demeanor.training.runs import Runs
    from tests.app import tiny_online

    (tmp_path / "items.jsonl").write_text(
        '{"id": "a", "messages": [{"role": "user", "content": "x"}], "scorer": "number", "target": {"value": [1]}, '
        '"axis": "sums", "cluster": "a"}\n'
    )
    prompts = [
        {"source": "world:behaviour", "items": True, "axes": ["facts", "fakts"]},
        {"source": "items.jsonl", "items": True},
    ]
    stack = app.load_stack(tiny_online.write(tmp_path, "grpo", prompts=prompts))
    with pytest.raises(SpecError, match="2 mistakes") as error:
        app.train(stack, Runs(tmp_path / "runs"))
    told = str(error.value)
    assert "prompts[0]: world:behaviour: unknown axis 'fakts'. Did you mean 'facts'?" in told
    assert "prompts[1]: " in told
    assert "items.jsonl" in told
    assert not (tmp_path / "runs").exists()
