"""Rewards of sampled completions: one signature for reward models, verifiers, rules, judges and their sums.

In: answers with their tasks. Out: a number for each, or None where it cannot be scored. Scorers of
evaluation/ and judges are given by app.py, since training knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from demeanor.core.types import Item, Messages


class Task(NamedTuple):
    """One prompt of an online stage: its messages and tokens, and the item that can verify answers to it."""

    messages: Messages
    tokens: tuple[int, ...]
    item: Item | None = None
    source: str = ""


class Rollout(NamedTuple):
    """One sampled completion: all its tokens with the stop token, its text, and whether a stop token ended it."""

    task: Task
    tokens: tuple[int, ...]
    text: str
    ended: bool


Reward: TypeAlias = Callable[[Sequence[Rollout]], list[float | None]]
"""Scores answers, in order; None: this answer cannot be scored, and no baseline counts it."""
