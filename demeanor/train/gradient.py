"""The gradient of one optimiser step: (sum of totals) / (sum of counts) over its micro-batches, clipped.

In: a model, a way to measure a batch, micro-batches. Out: `.grad` filled in, and what was measured. It never steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from demeanor.tensors import Loss, TokenBatch

Measure = Callable[[TokenBatch], Loss]


class Gradient(NamedTuple):
    """What one step measured: mean loss and metrics, gradient norm before clipping, what was counted, input tokens."""

    loss: float
    norm: float
    counted: float
    tokens: int
    metrics: dict[str, float]

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.norm)


def accumulate(model: nn.Module, measure: Measure, batches: Iterable[TokenBatch], clip_norm: float | None) -> Gradient:
    """Fill every `.grad`; how the rows are cut into micro-batches does not change it, because division happens once, here.

    Clipping scales the whole gradient to `clip_norm` when its norm is larger, exactly as torch's clip_grad_norm_.
    """
    model.zero_grad(set_to_none=True)
    losses, tokens = [], 0
    for batch in batches:
        loss = measure(batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        losses.append(Loss(loss.total.detach(), loss.count, loss.metrics))
        tokens += batch.tokens_T.numel()
    total, count = torch.stack([x.total for x in losses]).sum(), torch.stack([x.count for x in losses]).sum()
    share = 1.0 / count.clamp_min(1)  # a step in which nothing carries loss has a zero gradient, not 0/0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) * share
    scale = share if clip_norm is None else share * (clip_norm / (norm + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    mean, length, counted = torch.stack([(total * share).double(), norm.double(), count.double()]).tolist()
    return Gradient(mean, length, counted, tokens, mean_metrics(losses))


def mean_metrics(losses: Iterable[Loss]) -> dict[str, float]:
    """Divide each metric's summed total by its summed count; a metric that counted nothing is left out."""
    sums: dict[str, list[Tensor]] = {}
    for loss in losses:
        for name, (total, count) in loss.metrics.items():
            sums.setdefault(name, []).append(torch.stack([total.double(), count.double()]))
    if not sums:
        return {}
    pairs = torch.stack([torch.stack(found).sum(0) for found in sums.values()]).tolist()
    return {name: total / count for name, (total, count) in zip(sums, pairs) if count}
