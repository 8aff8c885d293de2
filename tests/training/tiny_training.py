"""A model of a few thousand weights, rows made by hand and a schedule one can read: what the loop's tests train."""

from __future__ import annotations

import random
from collections.abc import Sequence
from io import StringIO
from typing import NamedTuple

import torch
from torch import nn

from demeanor.data.trees import Branch, Tree
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.stack.schema import Optim
from demeanor.training.progress import StageProgress

VOCABULARY, WIDTH, LENGTH = 23, 16, 9
OPTIM = Optim(lr=0.01, weight_decay=0.1, warmup=0.2)


class Tiny(nn.Module):
    """Predicts the next token from this one and its position; a matrix, a vector, an embedding that is also the head."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.embedding = nn.Parameter(torch.randn(VOCABULARY, WIDTH, generator=drawn))
        self.mix = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=drawn) / 4)
        self.norm = nn.Parameter(torch.ones(WIDTH))


def outputs(model: nn.Module, batch: TokenBatch) -> Outputs:
    assert isinstance(model, Tiny)
    hidden_TD = model.embedding[batch.tokens_T] * (1 + batch.positions_T[:, None] / LENGTH)
    hidden_CD = torch.tanh(hidden_TD @ model.mix)[batch.scored_C] * model.norm
    logprobs_CV = (hidden_CD @ model.embedding.T).float().log_softmax(-1)
    return Outputs(logprobs_C=logprobs_CV.gather(1, batch.targets_C[:, None])[:, 0])


def loss(found: Outputs, batch: TokenBatch) -> Loss:
    assert found.logprobs_C is not None
    count = torch.tensor(found.logprobs_C.numel())
    right = (found.logprobs_C.detach() > -1.0).sum()
    return Loss(-found.logprobs_C.sum(), count, {"likely": (right, count)})


def rows(count: int = 24, seed: int = 0) -> list[Tree]:
    """Rows of different lengths; the first token of each is not trained."""
    draw = random.Random(seed)
    found = []
    for index in range(count):
        tokens = tuple(draw.randrange(1, VOCABULARY) for _ in range(draw.randrange(3, LENGTH)))
        found.append(
            Tree((), (Branch(tokens, (False,) + (True,) * (len(tokens) - 1)),), (0,), None, f"row{index}")
        )
    return found


class Rounds(NamedTuple):
    """A schedule: `steps` steps of `size` rows in order, around and around, in micro-batches of `micro` rows."""

    trees: Sequence[Tree]
    steps: int
    size: int = 8
    micro: int = 4

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[list[int]]:  # type: ignore[override]
        order = [(step * self.size + i) % len(self.trees) for i in range(self.size)]
        return [order[i : i + self.micro] for i in range(0, self.size, self.micro)]


class Seconds:
    """A clock that advances one second each time somebody looks."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


def quiet() -> StageProgress:
    return StageProgress("tiny", stream=StringIO(), terminal=False)
