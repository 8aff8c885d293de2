"""Weights that follow the trained ones: an exponential moving average, or DPO's moving reference.

In: a model and how fast to follow. Out: a second set of its trained parameters that the model can wear for a while. It never
trains and knows no objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from demeanor.core.errors import CheckpointError
from demeanor.train.parallel import put, settle


class EMA:
    """The trained parameters of a model, moved to `alpha * theirs + (1 - alpha) * own` after each `every`-th step.

    `every` 1 and alpha 1 - d is an exponential moving average with decay d; alpha 1 copies. Source: Gorbatovski et al. 2024
    (2404.09656), equations 2 and 3.
    """

    def __init__(
        self, model: nn.Module, *, alpha: float, every: int = 1, start: Mapping[str, Tensor] | None = None
    ) -> None:
        """`start`: weights to begin with instead of the model's own; raises CheckpointError if names or shapes differ."""
        self._alpha, self._every = alpha, every
        self.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        if start is not None:
            wrong = [n for n, w in self.weights.items() if n not in start or start[n].shape != w.shape]
            if wrong:
                raise CheckpointError(
                    f"the moving reference does not have the trained weights {', '.join(wrong[:3])}; "
                    "it must be the parent, or of the same shape and trained in full"
                )
            self.load(start)

    @torch.no_grad()
    def follow(self, model: nn.Module, done: int) -> None:
        """Move after optimiser step `done` (1-based)."""
        if done % self._every == 0:
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    self.weights[name].lerp_(parameter, self._alpha)

    @contextmanager
    def worn_by(self, model: nn.Module) -> Iterator[None]:
        """Run the block with the shadow's weights in the model; its own come back after it, bit for bit."""
        settle(model)
        own = {n: p.detach().clone() for n, p in model.named_parameters() if n in self.weights}
        self.put_on(model)
        try:
            yield
        finally:
            settle(model)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in own:
                        parameter.copy_(own[name])

    @torch.no_grad()
    def put_on(self, model: nn.Module) -> None:
        """Write the shadow's weights into the model."""
        settle(model)
        for name, parameter in model.named_parameters():
            if name in self.weights:
                parameter.copy_(self.weights[name])

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take these weights (full tensors) for the shadow's own."""
        for name, mine in self.weights.items():
            put(mine, weights[name])
