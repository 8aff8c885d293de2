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
            [{"kind": "model", "stages": ["rm", "rm"]}],
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
