"""Rollouts made by hand, tiny reward models, and the services that app.py gives, for tests of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from demeanor.core.types import Completion, Item, Message, Score
from demeanor.evaluation.items import wrong_target
from demeanor.evaluation.scorers import score_item
from demeanor.model import checkpoints
from demeanor.model.reward_model import RewardModel
from demeanor.stack.schema import ModelShape
from demeanor.stack.stack import Stack
from demeanor.training.rewards import Rollout, Task
from demeanor.training.scoring import AnswerPair, Prefer, RewardServices

VOCABULARY, STOP = 61, 2
SHAPE = ModelShape(layers=2, width=32, heads=4, kv_heads=2, context=64)


def model(seed: int = 0) -> RewardModel:
    """A reward model with random weights, its score scaled so that rewards differ by more than rounding."""
    found = checkpoints.reward_from(checkpoints.create(SHAPE, VOCABULARY, seed), seed)
    with torch.no_grad():
        found.score.weight.mul_(10)
    return found.eval()


def load(stage: str) -> nn.Module:
    """A different model for each stage `rm1`, `rm2`, ..."""
    return model(int(stage.removeprefix("rm")))


def task(*tokens: int, item: Item | None = None, text: str = "What is 2 plus 2?") -> Task:
    return Task((Message("user", text),), tokens or (5, 6, 7), item)


def rollout(
    text: str = "",
    tokens: Sequence[int] = (9, 10, STOP),
    *,
    of: Task | None = None,
    ended: bool = True,
    error: str | None = None,
) -> Rollout:
    found = tuple(tokens)
    return Rollout(of or task(), found, (True,) * len(found), (-1.0,) * len(found), text, ended, error=error)


def drawn(count: int, prompts: int = 3, seed: int = 0) -> list[Rollout]:
    """Random rollouts of different lengths, `count` for each of some prompts, interleaved."""
    generator = torch.Generator().manual_seed(seed)

    def some(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (n,), generator=generator).tolist())

    tasks = [task(*some(4 + p)) for p in range(prompts)]
    return [
        rollout(tokens=(*some(1 + (i + p) % 7), STOP), of=tasks[p])
        for i in range(count)
        for p in range(prompts)
    ]


def item(scorer: str = "number", target: dict[str, Any] | None = None, axis: str = "sums") -> Item:
    asked = (Message("user", "What is 2 plus 2?"),)
    return Item("one", asked, scorer, {"value": 4} if target is None else target, axis, "one")


def score(about: Item, answer: Completion) -> Score:
    return score_item(about, answer)


def never(stack: Stack, path: Path) -> Prefer:
    def prefer(pairs: Sequence[AnswerPair]) -> list[float | None]:
        raise AssertionError("no judge was wanted")

    return prefer


SERVICES = RewardServices(score, wrong_target, never)
