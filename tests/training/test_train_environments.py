"""Environments from the user's file, and those shaped as verifiers' MultiTurnEnv, without its package."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import UsageError
from demeanor.core.types import Completion, Item, Message, Messages
from demeanor.training.environments import Verifiers, load
from demeanor.training.episodes import Environment, Talk, converse
from demeanor.training.rewards import Task

SOURCE = """
from functools import partial
from demeanor.core.types import Message

def sure(task, messages):
    return (Message("user", "Sure?"),) if len(messages) < 4 else None

class Counted:
    def __init__(self, word="again"):
        self.asked, self.word = 0, word

    async def __call__(self, task, messages):
        self.asked += 1
        return (Message("user", f"{self.word} {self.asked}"),)

louder = partial(Counted, "LOUDER")
number = 7
"""
TASK = Task(
    (Message("user", "Guess a number."),),
    (1, 2),
    Item("i", (Message("user", "Guess a number."),), "match", {"answer": "7"}, "games", "games"),
    "games",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "envs.py").write_text(SOURCE)
    return tmp_path


def talked(environment: Environment, answers: list[str], turns: int = 3) -> Talk:
    said = iter(answers)

    async def ask(messages: Messages) -> Completion:
        return Completion(next(said), "stop")

    return asyncio.run(converse(TASK, ask, environment, turns=turns))


def texts(talk: Talk) -> list[str]:
    assert talk.error is None
    return [m.content for m in talk.messages]


def test_a_function_of_the_users_file_answers_the_policy(folder: Path) -> None:
    assert texts(talked(load("envs.py:sure", folder)(), ["1", "2", "3"])) == ["1", "Sure?", "2"]


def test_a_class_is_an_environment_of_its_own_for_each_episode(folder: Path) -> None:
    opened = load("envs.py:Counted", folder)
    first, second = (texts(talked(opened(), ["1", "2", "3"])) for _ in range(2))
    assert first == second == ["1", "again 1", "2", "again 2", "3"]
    assert texts(talked(load("envs.py:louder", folder)(), ["1", "2"], turns=2)) == ["1", "LOUDER 1", "2"]


def test_what_is_missing_or_broken_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"no such file: .*gone\.py; wanted FILE\.py:NAME"):
        load("gone.py:sure", folder)
    with pytest.raises(UsageError, match=r"unknown function 'shure'\. Did you mean 'sure'\?"):
        load("envs.py:shure", folder)
    with pytest.raises(UsageError, match="unknown function 'number'"):
        load("envs.py:number", folder)
    (folder / "broken.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(UsageError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        load("broken.py:x", folder)


class Rubric:
    async def score_rollout(self, state: dict[str, Any]) -> None:
        state["reward"] = float(state["completion"][-1]["content"] == state["answer"])


class Guess:
    """As verifiers 1.0 shapes it: state only, and a text as the answer."""

    rubric = Rubric()

    async def setup_state(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "tries": 0}

    async def is_completed(self, state: dict[str, Any], **kwargs: Any) -> bool:
        return bool(state["completion"][-1]["content"] == state["answer"])

    async def env_response(self, messages: list[Any], state: dict[str, Any], **kwargs: Any) -> str:
        state["tries"] += 1
        assert messages[-1]["role"] == "assistant"
        return f"wrong ({state['tries']} of {state['turn']}), asked {len(messages)} messages"


class OldGuess(Guess):
    """As verifiers 0.1 shaped it: messages and state, both returned."""

    async def is_completed(self, messages: list[Any], state: dict[str, Any], **kwargs: Any) -> bool:  # type: ignore[override]
        return bool(messages[-1]["content"] == state["answer"])

    async def env_response(  # type: ignore[override]
        self, messages: list[Any], state: dict[str, Any], **kwargs: Any
    ) -> tuple[list[dict[str, str]], dict[str, Any]]:
        text = await super().env_response(messages, state)
        return [{"role": "user", "content": text}], state


@pytest.mark.parametrize("kind", [Guess, OldGuess])
def test_an_environment_shaped_as_verifiers_is_played_and_scored(kind: type[Guess]) -> None:
    opened = partial(Verifiers, kind())
    won = talked(opened(), ["3", "5", "7", "9"], turns=9)
    assert texts(won) == [
        "3",
        "wrong (1 of 1), asked 2 messages",
        "5",
        "wrong (2 of 2), asked 4 messages",
        "7",
    ]
    assert won.score == 1.0
    lost = talked(opened(), ["3", "5"], turns=2)
    assert (lost.score, lost.messages[-1].content) == (0.0, "5")


def test_a_tool_result_of_another_package_keeps_its_call(folder: Path) -> None:
    class Tools(Guess):
        async def env_response(self, messages: list[Any], state: dict[str, Any], **kwargs: Any) -> Any:
            return [{"role": "tool", "content": "42", "tool_call_id": "c1", "name": "f"}]

    found = talked(Verifiers(Tools()), ["3", "7"], turns=2)
    assert (found.messages[1].role, found.messages[1].tool_call_id) == ("tool", "c1")
