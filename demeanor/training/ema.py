"""Exponential moving average of the trained weights; also the moving reference policy of TR-DPO.

In: a model and a decay. Out: a second copy of its trainable parameters, updated after each optimizer step,
that can be swapped into the model temporarily. It never trains and knows no objective.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from demeanor.core.errors import CheckpointError
from demeanor.training.parallel import put, settle


class EMA:
    """A copy of a model's trainable parameters that follows the model.

    After every `every` steps, copy <- alpha * model + (1 - alpha) * copy.

    `every` 1 and alpha 1 - d give an exponential moving average with decay d; alpha 1 copies the model.
    Source: Gorbatovski et al. 2024 (arXiv 2404.09656), equations 2 and 3.
    """

    def __init__(
        self, model: nn.Module, *, alpha: float, every: int = 1, start: Mapping[str, Tensor] | None = None
    ) -> None:
        """`start`: initial weights instead of the model's own.

        Raises CheckpointError if names or shapes differ.
        """
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
    def update(self, model: nn.Module, done: int) -> None:
        """Update the copy after optimizer step `done` (1-based)."""
        if done % self._every == 0:
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    self.weights[name].lerp_(parameter, self._alpha)

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Run the block with the averaged weights in the model, then restore its own bit for bit."""
        settle(model)
        own = {n: p.detach().clone() for n, p in model.named_parameters() if n in self.weights}
        self.copy_to(model)
        try:
            yield
        finally:
            settle(model)
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in own:
                        parameter.copy_(own[name])

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the averaged weights into the model."""
        settle(model)
        for name, parameter in model.named_parameters():
            if name in self.weights:
                parameter.copy_(self.weights[name])

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the averaged weights by these full tensors."""
        for name, own in self.weights.items():
            put(own, weights[name])
