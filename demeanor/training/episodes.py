"""Episodes: calls of the policy and what an environment answered, as rollouts of exact token ids.

In: the policy's calls as token ids (prompt, drawn tokens, log-probs), or a way to ask it. Out: rollouts. No
text is tokenised here: a token is trained only if the policy drew it. Knows no engine and no layer.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from demeanor.core.errors import ContextError, EngineError, UsageError
from demeanor.core.types import Completion, Message, Messages
from demeanor.training.rewards import Rollout, Task, TokenPath

Environment: TypeAlias = Callable[[Task, Messages], "Messages | Awaitable[Messages | None] | None"]
"""What follows the policy's answer: tool results or a user turn, or None (or nothing) to end the episode.

It gets the task and the conversation so far, which ends with the policy's answer, and may be async. An
attribute `score(task, messages) -> float | None`, also sync or async, scores the finished conversation.
"""
Ask: TypeAlias = Callable[[Messages], Awaitable[Completion]]


class PolicyCall(NamedTuple):
    """One call of the policy: what it read, what it drew, log-probs (nats) and kept tokens of each draw.

    `ended`: a stop token or a stop text ended the answer. `forced`: a grammar chose among the tokens, so none
    of them counts as written by the policy.
    """

    prompt: tuple[int, ...]
    drawn: tuple[int, ...]
    sampled: tuple[float, ...]
    kept: tuple[tuple[int, ...], ...] = ()
    ended: bool = True
    forced: bool = False


class Talk(NamedTuple):
    """A finished conversation: the messages after the prompt, the last answer, and what ended it badly."""

    messages: Messages
    text: str
    score: float | None = None
    error: str | None = None


def paths(calls: Sequence[PolicyCall]) -> list[TokenPath]:
    """Join calls to paths: a call whose prompt begins with all tokens of a path continues it.

    What stands between the two was not written by the policy. Tokens decide, never text, so a call after a
    prompt that was rendered anew and differs in one token is a path of its own.
    """
    found: list[TokenPath] = []
    for call in calls:
        for i in reversed(range(len(found))):
            path = found[i]
            whole = (*path.prompt, *path.tokens)
            if call.prompt[: len(whole)] == whole:
                found[i] = _extended(path, call, len(whole))
                break
        else:
            found.append(_extended(TokenPath(call.prompt, (), (), ()), call, len(call.prompt)))
    return found


def _extended(path: TokenPath, call: PolicyCall, known: int) -> TokenPath:
    between = call.prompt[known:]
    kept = call.kept or ((),) * len(call.drawn)
    return TokenPath(
        path.prompt,
        (*path.tokens, *between, *call.drawn),
        (*path.written, *[False] * len(between), *[not call.forced] * len(call.drawn)),
        (*path.sampled, *(() if call.forced else call.sampled)),
        (*path.kept, *(() if call.forced else kept)),
    )


def rollout(task: Task, calls: Sequence[PolicyCall], talk: Talk) -> Rollout:
    """The rollout of an episode; its task's tokens become the first call's prompt, as the policy read it.

    Without a call (a layer answered in the policy's place) it has no tokens and trains nothing.
    """
    first, *later = paths(calls) or [TokenPath(task.tokens, (), (), ())]
    return Rollout(
        task._replace(tokens=first.prompt),
        first.tokens,
        first.written,
        first.sampled,
        talk.text,
        bool(calls) and calls[-1].ended,
        first.kept if any(first.kept) else (),
        talk.messages,
        talk.error,
        tuple(path if any(path.kept) else path._replace(kept=()) for path in later),
        talk.score,
    )


# ---- one conversation ----


async def converse(
    task: Task, ask: Ask, environment: Environment | None, *, turns: int, timeout_s: float | None = None
) -> Talk:
    """Ask the policy and its environment in turn, at most `turns` answers; a failure ends only this one."""
    messages, text, limit = task.messages, "", asyncio.timeout(timeout_s)
    try:
        async with limit:
            for left in reversed(range(turns)):
                answer = await ask(messages)
                text = answer.text
                messages = (*messages, Message("assistant", text, tool_calls=answer.tool_calls))
                follows = await awaited(environment(task, messages)) if environment and left else None
                if not follows:
                    break
                messages = (*messages, *follows)
            score = getattr(environment, "score", None)
            found = None if score is None else await awaited(score(task, messages))
            return Talk(messages[len(task.messages) :], text, None if found is None else float(found))
    except (EngineError, UsageError) as error:
        if not isinstance(error, ContextError):
            raise  # no fault of this episode: a broken engine or server, or a wrong setting, ends the run
        why = str(error)
    except Exception as error:  # the user's code and tools may fail in any way; only this episode is lost
        why = f"not finished after {timeout_s:g} s" if limit.expired() else f"{type(error).__name__}: {error}"
    return Talk(messages[len(task.messages) :], text, error=why)


async def awaited(value: Any) -> Any:
    """The value of a function that may be async."""
    return await value if inspect.isawaitable(value) else value
