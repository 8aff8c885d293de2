"""The gradient of one optimiser step: (sum of totals) / (sum of counts) over its micro-batches and processes, clipped.

In: a model, a way to run and to judge a batch, micro-batches. Out: `.grad` filled in, and what was measured. It never steps.

An objective whose loss is not a sum over trees (a mean or a sort over the batch is in it) is judged on the whole step at once:
its micro-batches run once without gradients, the loss is taken of all outputs together, and each micro-batch runs again to carry
its share of the gradient back (Gao et al. 2021, arXiv 2101.06983, section 3.2). So memory never changes the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from demeanor.model.tensors import Loss, Outputs, TokenBatch, concatenate
from demeanor.train.parallel import ALONE, Group

Forward = Callable[[TokenBatch], Outputs]
Measure = Callable[[TokenBatch], Loss]
Judge = Callable[[Outputs, TokenBatch], Loss]


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


def accumulate(
    model: nn.Module,
    forward: Forward,
    judge: Judge,
    batches: Sequence[TokenBatch],
    clip_norm: float | None,
    *,
    whole_step: bool = False,
    group: Group = ALONE,
) -> Gradient:
    """Fill every `.grad`; how the rows are cut into micro-batches does not change it, because division happens once, here.

    `whole_step`: the objective sees all micro-batches (of all processes) at once. Clipping scales the whole gradient to
    `clip_norm` when its norm is larger, exactly as torch's clip_grad_norm_.
    """
    model.zero_grad(set_to_none=True)
    if whole_step and (len(batches) > 1 or group.size > 1):
        losses = [_whole(forward, judge, batches, group)]
    else:
        losses = [_backward(judge(forward(batch), batch)) for batch in batches]
    tokens = sum(batch.tokens_T.numel() for batch in batches)
    total, count = torch.stack([x.total for x in losses]).sum(), torch.stack([x.count for x in losses]).sum()
    if not whole_step:
        total, count = group.sum(torch.stack([total.double(), count.double()])).to(total.dtype)
    share = 1.0 / count.clamp_min(1)  # a step in which nothing carries loss has a zero gradient, not 0/0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = group.whole(torch.nn.utils.get_total_norm(gradients)) * share
    scale = share if clip_norm is None else share * (clip_norm / (norm + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    mean, length, counted = torch.stack([(total * share).double(), norm.double(), count.double()]).tolist()
    return Gradient(
        mean, length, counted, group.total(tokens), mean_metrics(losses, ALONE if whole_step else group)
    )


def _backward(loss: Loss) -> Loss:
    loss.total.backward()  # type: ignore[no-untyped-call]
    return Loss(loss.total.detach(), loss.count, loss.metrics)


def _whole(forward: Forward, judge: Judge, batches: Sequence[TokenBatch], group: Group) -> Loss:
    """Judge all micro-batches together, then carry each one's share of the gradient back through a second forward pass."""
    with torch.no_grad():
        found = [forward(batch) for batch in batches]
    mine, merged = stacked(found), concatenate(batches)
    everyone, all_rows, first = group.gather(mine, merged)
    name = "logprobs_C" if everyone.logprobs_C is not None else "rewards_B"
    leaf = getattr(everyone, name).detach().requires_grad_()
    loss = _backward(judge(everyone._replace(**{name: leaf}), all_rows))
    sizes = [getattr(x, name).numel() for x in found]
    slope = leaf.grad[first : first + sum(sizes)]
    for batch, part in zip(batches, torch.split(slope, sizes)):
        torch.autograd.backward(getattr(forward(batch), name), part)
    return loss


def stacked(found: Sequence[Outputs]) -> Outputs:
    """The outputs of several batches as those of their concatenation."""
    columns = zip(*found)
    return Outputs(*(None if any(x is None for x in column) else torch.cat(column) for column in columns))


def mean_metrics(losses: Iterable[Loss], group: Group = ALONE) -> dict[str, float]:
    """Divide each metric's summed total by its summed count; a metric that counted nothing is left out."""
    sums: dict[str, list[Tensor]] = {}
    for loss in losses:
        for name, (total, count) in loss.metrics.items():
            sums.setdefault(name, []).append(torch.stack([total.double(), count.double()]))
    if not sums:
        return {}
    pairs = group.sum(torch.stack([torch.stack(found).sum(0) for found in sums.values()])).tolist()
    return {name: total / count for name, (total, count) in zip(sums, pairs) if count}
