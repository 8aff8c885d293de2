"""Tree attention on a CPU as one compiled function: no copies of queries, no masks, no kept probabilities.

In: segments; q, k, v in bf16. Out: a layout (numbers for `kernels/trees.h`) and the mixed values with their gradients. Sums are
fp32. The twins are `attention.py`'s products and the tests' dense mask.
Source: Dao et al. 2022, arXiv 2205.14135, algorithm 4 for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demeanor.model import training_library
from demeanor.model.tensors import Segment

LEAST_WIDTH = (
    512  # of a model's residual stream; narrower ones keep the bits of weights that were trained without it
)
STEP = 16  # numbers of a head that are read at once


class Forest(NamedTuple):
    """Trees (first and last segment and token of each), their segments and ranges of keys, as in `kernels/trees.h`."""

    units: Tensor
    segments: Tensor
    ranges: Tensor


def suits(width: int, head: int) -> bool:
    """Whether a model of this width and head size is trained with the kernel, in bf16 and where it can be compiled."""
    return width >= LEAST_WIDTH and head % STEP == 0


def fits(width: int, head: int) -> bool:
    """Whether a model of this width and head size is trained with the kernel here, if it is trained in bf16."""
    return suits(width, head) and training_library.build() is not None


def layout(segments: Sequence[Segment]) -> Forest:
    """Lay segments out: those that share keys make a unit; the costly units come first."""
    units: list[tuple[list[Segment], int, int]] = []
    for segment in sorted(segments, key=lambda s: s.start):
        if segment.end <= segment.start:
            continue
        first = min(a for a, _ in (*segment.context, (segment.start, segment.end)))
        members, end = [segment], segment.end
        while units and first < units[-1][2]:
            before, start, stop = units.pop()
            members, first, end = before + members, min(first, start), max(end, stop)
        units.append((members, first, end))
    units.sort(key=lambda unit: -sum((s.end - s.start) * _keys(s) for s in unit[0]))
    table: list[tuple[int, int, int, int]] = []
    rows: list[tuple[int, int, int, int, int]] = []
    ranges: list[tuple[int, int]] = []
    for members, first, end in units:
        table.append((len(rows), len(rows) + len(members), first, end))
        for s in members:
            at = len(ranges)
            ranges += [*s.context, (s.start, s.end)]
            rows.append((s.start, s.end, at, len(ranges), _keys(s)))
    return Forest(*(torch.tensor(x, dtype=torch.int64) for x in (table, rows, ranges)))


def _keys(segment: Segment) -> int:
    return sum(b - a for a, b in segment.context) + segment.end - segment.start


class ForestAttention(torch.autograd.Function):
    """Mixed values (T, H, D) of q (T, H, D), k and v (T, K, D), all bf16; every token belongs to a segment."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: Forest) -> Tensor:
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        out, logs = torch.empty_like(q), torch.empty(q.shape[:2])
        sizes = (len(parts.units), q.shape[1], k.shape[1], q.shape[2])
        training_library.call("attend", *parts, *sizes, q, k, v, out, logs)
        ctx.save_for_backward(q, k, v, logs)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, logs = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        sizes = (len(ctx.parts.units), q.shape[1], k.shape[1], q.shape[2])
        slope = grads[0].contiguous()
        training_library.call("attend_backward", *ctx.parts, *sizes, q, k, v, logs, slope, dq, dk, dv)
        return dq, dk, dv, None
