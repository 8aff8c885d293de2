"""Rewards of sampled completions: one signature for reward models, verifiers, rules, judges and their sums.

In: answers with their tasks. Out: a number for each, or None where it cannot be scored. Scorers of
evaluation/ and judges are given by app.py, since training knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from torch import nn

from demeanor.core.types import Item, Messages


class Task(NamedTuple):
    """One prompt of an online stage: its messages and tokens, and the item that can verify answers to it."""

    messages: Messages
    tokens: tuple[int, ...]
    item: Item | None = None
    source: str = ""


class TokenPath(NamedTuple):
    """Calls of the policy that one token sequence holds: each call's prompt continues the tokens before it.

    `written`, `sampled` and `kept` as in Rollout.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    written: tuple[bool, ...]
    sampled: tuple[float, ...]
    kept: tuple[tuple[int, ...], ...] = ()


class Rollout(NamedTuple):
    """One sampled completion of a task's prompt: every token after the prompt, the stop token included.

    `written`: the policy drew this token; others (tool results, user turns, forced tokens) are never trained.
    `sampled` are the log-probs (nats) of the written tokens under the distribution that they were drawn from,
    `kept` the tokens that distribution was truncated to (empty: all tokens). `ended`: a stop token ended it.
    """

    task: Task
    tokens: tuple[int, ...]
    written: tuple[bool, ...]
    sampled: tuple[float, ...]
    text: str
    ended: bool
    kept: tuple[tuple[int, ...], ...] = ()
    messages: Messages = ()  # what followed the prompt, if there were several turns
    error: str | None = None  # why it has no reward: a tool or a scorer that failed
    later: tuple[
        TokenPath, ...
    ] = ()  # calls whose prompts do not continue `tokens`: trees of their own, same reward
    score: float | None = None  # what the environment itself gave


Roll: TypeAlias = Callable[[nn.Module, Sequence[Task], Sequence[Sequence[int]]], list[list[Rollout]]]
"""Samples a policy: from its weights, tasks and the seeds of each task's completions to as many rollouts."""

Reward: TypeAlias = Callable[[Sequence[Rollout]], list[float | None]]
"""Scores rollouts, in order; None: this one cannot be scored, and no baseline counts it."""
