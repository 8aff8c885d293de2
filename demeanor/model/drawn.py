"""The distribution that a token was drawn from: logits at a temperature, over the tokens that sampling kept.

In: logits and what a batch says of each target. Out: logits whose softmax is that distribution. Truncated sampling
(top-k, top-p, min-p) renormalises, so a loss that reads log-probabilities of sampled tokens must do the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from demeanor.model.tensors import TokenBatch


class Drawn(NamedTuple):
    """How each of C targets was drawn; the fields are those of `TokenBatch`."""

    temperature_C: Tensor | None
    kept_K: Tensor | None
    kept_of_K: Tensor | None

    def rows(self, start: int, end: int) -> Drawn:
        """The same for targets `start` to `end`."""
        temperature = None if self.temperature_C is None else self.temperature_C[start:end]
        if self.kept_K is None or self.kept_of_K is None:
            return Drawn(temperature, None, None)
        inside = (self.kept_of_K >= start) & (self.kept_of_K < end)
        return Drawn(temperature, self.kept_K[inside], self.kept_of_K[inside] - start)


def drawn_of(batch: TokenBatch) -> Drawn | None:
    """How a batch's targets were drawn; None if from the whole distribution at temperature 1."""
    if batch.temperature_C is None and batch.kept_K is None:
        return None
    return Drawn(batch.temperature_C, batch.kept_K, batch.kept_of_K)


def conditioned(logits_CV: Tensor, drawn: Drawn | None) -> Tensor:
    """Divide logits by their temperatures, and exclude the tokens that sampling had excluded: logits_CV."""
    if drawn is None:
        return logits_CV
    if drawn.temperature_C is not None:
        logits_CV = logits_CV / drawn.temperature_C[:, None].to(logits_CV.dtype)
    if drawn.kept_K is not None and drawn.kept_of_K is not None and drawn.kept_K.numel():
        excluded_CV = torch.zeros_like(logits_CV, dtype=torch.bool)
        excluded_CV[drawn.kept_of_K] = True
        excluded_CV[drawn.kept_of_K, drawn.kept_K] = False
        logits_CV = logits_CV.masked_fill(excluded_CV, float("-inf"))
    return logits_CV


def entropy(logits_CV: Tensor) -> Tensor:
    """Return the entropy (nats) of each row's softmax: entropy_C."""
    entropy_C: Tensor = torch.special.entr(logits_CV.softmax(-1)).sum(-1)
    return entropy_C
