"""Environments of online stages: the user's function in a file beside the stack, and those shaped as `verifiers`'.

In: FILE.py:NAME. Out: a function that opens an environment for each episode. The file is the user's own code
and runs with all rights of this process, as the stack's author wants.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from demeanor.core.errors import UsageError, unknown
from demeanor.core.types import Message, Messages, ToolCall, message_json
from demeanor.training.episodes import Environment, awaited
from demeanor.training.rewards import Task


def load(name: str, root: Path) -> Callable[[], Environment]:
    """What opens the environment FILE.py:NAME for one episode: a class is instantiated, a function is the same.

    A functools.partial of a class counts as a class. Raises UsageError if there is none.
    """
    file, _, attribute = name.partition(":")
    path = root / file
    spec = importlib.util.spec_from_file_location(f"demeanor_environment_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UsageError(
            f"rollouts.environment: no such file: {path}; wanted FILE.py:NAME beside the stack file"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises when it is imported
        why = f"{type(error).__name__}: {error}"
        raise UsageError(f"rollouts.environment: {path} cannot be imported: {why}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        offered = [n for n, x in vars(module).items() if callable(x) and not n.startswith("_")]
        raise UsageError(f"rollouts.environment: {path}: {unknown(attribute, offered, noun='function')}")
    function = cast(Environment, found)
    if inspect.isclass(found.func if isinstance(found, functools.partial) else found):
        return cast(Callable[[], Environment], found)
    return lambda: function


class Verifiers:
    """One episode of an environment shaped as verifiers' MultiTurnEnv (setup_state, is_completed, env_response, rubric).

    Its package is not imported here. `state` has prompt, completion, answer, info, task, turn, trajectory;
    the reward is what `rubric.score_rollout(state)` leaves in state["reward"].
    """

    def __init__(self, env: Any) -> None:
        self._env = env
        self._state: dict[str, Any] | None = None

    async def __call__(self, task: Task, messages: Messages) -> Messages | None:
        state = await self._updated(task, messages)
        if await _called(self._env.is_completed, messages=state["prompt"] + state["completion"], state=state):
            return None
        found = await _called(
            self._env.env_response, messages=state["prompt"] + state["completion"], state=state
        )
        if isinstance(found, tuple):  # before verifiers 0.1.8: messages and state
            found, self._state = found
        if isinstance(found, str):
            found = [{"role": "user", "content": found}]
        return tuple(message_of(raw) for raw in found or ()) or None

    async def score(self, task: Task, messages: Messages) -> float | None:
        state = await self._updated(task, messages)
        found = await awaited(self._env.rubric.score_rollout(state))
        reward = state.get("reward", getattr(found, "reward", None))
        return None if reward is None else float(reward)

    async def _updated(self, task: Task, messages: Messages) -> dict[str, Any]:
        """The state with the conversation so far."""
        if self._state is None:
            target = dict(task.item.target) if task.item is not None else {}
            state: dict[str, Any] = {
                "prompt": [message_json(m) for m in task.messages],
                "answer": target.get("answer", ""),
                "info": target,
                "task": task.source,
                "trajectory": [],
                "responses": [],
            }
            setup = getattr(self._env, "setup_state", None)
            found = None if setup is None else await awaited(setup(state))
            self._state = found if isinstance(found, dict) else state
        said = messages[len(task.messages) :]
        self._state["completion"] = [message_json(m) for m in said]
        self._state["turn"] = sum(m.role == "assistant" for m in said)
        return self._state


async def _called(function: Callable[..., Any], **known: Any) -> Any:
    """Call a function with those of some arguments that it names; it may be async."""
    wanted = inspect.signature(function).parameters
    return await awaited(function(**{name: value for name, value in known.items() if name in wanted}))


def message_of(raw: Mapping[str, Any]) -> Message:
    """A message in OpenAI's JSON form, as environments of other packages give it."""
    calls = tuple(
        ToolCall(str(c["id"]), str(c["function"]["name"]), str(c["function"]["arguments"]))
        for c in raw.get("tool_calls") or ()
    )
    return Message(
        raw["role"], str(raw.get("content") or ""), calls, raw.get("tool_call_id"), raw.get("name")
    )
