"""Attention over token trees: each segment attends to its context ranges, then causally to itself.

In: q, k, v of a whole batch and its segments. Out: the mixed values; no T x T mask and no padded batch. Many
short segments of similar shape run as one padded product, others as slices. CUDA uses one varlen kernel
(`varlen.py`), wide models in bf16 on a CPU a compiled one (`attention_kernel.py`); the tests compare with a dense mask. Small probabilities are kept for the backward pass, large
ones recomputed.
Source: Dao et al. 2022, arXiv 2205.14135, section 3.1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demeanor.model import attention_kernel, varlen
from demeanor.model.tensors import Segment

STEP = 16
LONG, BLOCK = 384, 192  # longer segments are cut into blocks of queries, which skips most masked products
MANY, SMALL = 3, 96  # from MANY segments of at most SMALL queries on, one padded product is faster
KEEP_BYTES = 48 << 20  # probabilities of one layer that are kept; larger ones are recomputed


class Part(NamedTuple):
    """Segments that run as one product: G of them, L queries and S keys each (context first).

    `queries` and `keys` are their positions in T: ranges for one segment, indices (G*L, G*S) for many. `mask`
    is additive: (L, S) if all members share it, else (G, 1, L, S). `rows_R` are the places in G x L that hold
    a token, None if all do.
    """

    G: int
    L: int
    S: int
    queries: tuple[int, int] | Tensor
    keys: tuple[tuple[int, int], ...] | Tensor
    mask: Tensor
    rows_R: Tensor | None = None


Parts = tuple[Part, ...] | varlen.Layout | attention_kernel.Forest


def buckets(segments: Sequence[Segment], device: torch.device) -> Parts:
    """Return how the segments are run; made once per batch, used by every layer and the backward pass."""
    segments = joined(segments)
    if device.type == "cuda":
        return varlen.layout(segments, device)
    total = max((s.end for s in segments), default=0)
    lengths = {s.end - s.start for s in segments}
    is_flat = not any(s.context for s in segments) and sum(s.end - s.start for s in segments) == total
    if len(lengths) == 1 and total <= LONG * len(segments) and is_flat:
        length = lengths.pop()
        return (Part(len(segments), length, length, (0, total), ((0, total),), _causal(length, length)),)
    groups: dict[tuple[int, int], list[Segment]] = defaultdict(list)
    for segment in blocks(segments):
        groups[(_up(segment.end - segment.start), _up(_size(segment.context)))].append(segment)
    parts: list[Part] = []
    for (length, context), members in groups.items():
        if len(members) >= MANY and length <= SMALL:
            parts.append(_batched(members, length, context))
        else:
            parts += map(_single, members)
    return tuple(parts)


def joined(segments: Sequence[Segment]) -> list[Segment]:
    """Merge each branch that follows its prompt directly with it: the same attention in fewer segments."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if last and last.end == segment.start and segment.context == (*last.context, (last.start, last.end)):
            found[-1] = Segment(last.start, segment.end, last.context)
        elif segment.end > segment.start:
            found.append(segment)
    return found


def blocks(segments: Sequence[Segment]) -> Iterator[Segment]:
    """Cut long segments into blocks that have the blocks before them as context: the same attention."""
    for segment in segments:
        if segment.end - segment.start <= LONG:
            yield segment
            continue
        for start in range(segment.start, segment.end, BLOCK):
            before = ((segment.start, start),) if start > segment.start else ()
            yield Segment(start, min(start + BLOCK, segment.end), (*segment.context, *before))


def _size(context: Sequence[tuple[int, int]]) -> int:
    return sum(b - a for a, b in context)


def _up(count: int) -> int:
    """Round up to a multiple of STEP, or of 1/4 of the next power of two if that is more."""
    step = max(STEP, 1 << max(0, count.bit_length() - 3))
    return -(-count // step) * step


def _causal(queries: int, keys: int) -> Tensor:
    """Return the bottom-right causal additive mask, queries x keys, fp32."""
    return torch.full((queries, keys), float("-inf")).triu(1 + keys - queries)


def _single(segment: Segment) -> Part:
    ranges: list[tuple[int, int]] = []
    for a, b in (*segment.context, (segment.start, segment.end)):
        if ranges and ranges[-1][1] == a:
            ranges[-1] = (ranges[-1][0], b)
        elif b > a:
            ranges.append((a, b))
    L, S = segment.end - segment.start, _size(ranges)
    return Part(1, L, S, (segment.start, segment.end), tuple(ranges), _causal(L, S))


def _batched(members: Sequence[Segment], length: int, context: int) -> Part:
    own_L = torch.arange(length)
    starts, sizes = torch.tensor([(s.start, s.end - s.start) for s in members])[:, :, None].unbind(1)
    valid_GL = own_L < sizes
    queries_GL = torch.where(valid_GL, starts + own_L, 0)
    seen_GC = torch.zeros(len(members), context, dtype=torch.long)
    before_G = torch.zeros(len(members), 1, dtype=torch.long)
    for g, segment in enumerate(members):
        found = [torch.arange(a, b) for a, b in segment.context]
        before_G[g] = sum(map(len, found))
        if found:
            seen_GC[g, : before_G[g]] = torch.cat(found)
    mask = _causal(length, length)
    if context:
        hidden_GC = torch.zeros(len(members), context).masked_fill_(
            torch.arange(context) >= before_G, float("-inf")
        )
        expanded = mask.expand(len(members), -1, -1)
        mask = torch.cat([hidden_GC[:, None].expand(-1, length, -1), expanded], -1)[:, None]
    rows_R = None if bool(valid_GL.all()) else valid_GL.flatten().nonzero().squeeze(-1)
    keys = torch.cat([seen_GC, queries_GL], 1).flatten()
    return Part(len(members), length, context + length, queries_GL.flatten(), keys, mask, rows_R)


def tree_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, parts: Parts) -> Tensor:
    """Mix values over a batch of token trees: q (T, H, D), k and v (T, K, D), H a multiple of K; returns
    (T, H, D)."""
    if isinstance(parts, varlen.Layout):
        return varlen.attention(q_THD, k_TKD, v_TKD, parts)
    mixed: Tensor = attending(parts).apply(q_THD, k_TKD, v_TKD, parts)
    return mixed


def attending(parts: Parts) -> Any:
    """The function with a gradient that mixes values over these parts on a CPU."""
    return attention_kernel.ForestAttention if isinstance(parts, attention_kernel.Forest) else _TreeAttention


# ---- rows of T to products and back ----


def _gathered(
    x_THD: Tensor, where: tuple[int, int] | tuple[tuple[int, int], ...] | Tensor, G: int, K: int
) -> Tensor:
    """Return rows as (G*K, H/K * L, D): the heads that share a key head are stacked in the rows."""
    if isinstance(where, Tensor):
        rows = x_THD.index_select(0, where)
    else:
        ranges: Any = where if isinstance(where[0], tuple) else (where,)
        slices = [x_THD[a:b] for a, b in ranges]
        rows = slices[0] if len(slices) == 1 else torch.cat(slices)
    H, D = x_THD.shape[1:]
    if G == 1 and H == K:
        return rows.transpose(0, 1)
    return rows.reshape(G, -1, K, H // K, D).permute(0, 2, 3, 1, 4).reshape(G * K, -1, D)


def _rows(x: Tensor, G: int, K: int, L: int) -> Tensor:
    """Turn (G*K, H/K * L, D) back into (G * L, H, D)."""
    D = x.shape[-1]
    return x.view(G, K, -1, L, D).permute(0, 3, 1, 2, 4).reshape(G * L, -1, D)


def _probabilities(Q: Tensor, Kx: Tensor, part: Part, K: int, scale: float) -> Tensor:
    """Return attention probabilities (G*K, H/K * L, S); scores in the dtype of Q, softmax in fp32."""
    repeat = Q.shape[1] // part.L
    mask = part.mask.to(Q.dtype)
    if mask.ndim == 2:
        shared = mask.repeat(repeat, 1) if repeat > 1 else mask
        return torch.baddbmm(shared, Q, Kx.transpose(1, 2), alpha=scale).softmax(-1)
    scores = torch.bmm(Q, Kx.transpose(1, 2)).mul_(scale)
    scores.view(part.G, -1, part.L, part.S).add_(mask)
    return scores.softmax(-1)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: tuple[Part, ...]) -> Tensor:
        H, K, D = q.shape[1], k.shape[1], q.shape[2]
        out = torch.empty_like(q)
        keep = sum(H * x.G * x.L * x.S for x in parts) * q.element_size() <= KEEP_BYTES
        kept: list[Tensor] = []
        for part in parts:
            Q, Kx, V = (
                _gathered(x, where, part.G, K)
                for x, where in ((q, part.queries), (k, part.keys), (v, part.keys))
            )
            p = _probabilities(Q, Kx, part, K, D**-0.5)
            mixed = _rows(torch.bmm(p, V), part.G, K, part.L)
            _write(out, part, mixed)
            if keep:
                kept.append(p)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad = grads[0]
        K, D = k.shape[1], q.shape[2]
        scale, wide = D**-0.5, torch.promote_types(q.dtype, torch.float32)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for i, part in enumerate(ctx.parts):
            Q, dO, Kx, V = (
                _gathered(x, where, part.G, K)
                for x, where in ((q, part.queries), (grad, part.queries), (k, part.keys), (v, part.keys))
            )
            if part.rows_R is not None:  # no gradient flows back from padding
                real = torch.zeros(part.G * part.L, dtype=grad.dtype).index_fill_(0, part.rows_R, 1.0)
                dO = (dO.view(part.G, K, -1, part.L, D) * real.view(part.G, 1, 1, part.L, 1)).view_as(dO)
            p = kept[i] if kept else _probabilities(Q, Kx, part, K, scale)
            dV = torch.bmm(p.transpose(1, 2), dO)
            ds = torch._softmax_backward_data(torch.bmm(dO, V.transpose(1, 2)), p, -1, p.dtype)
            dQ = _rows(torch.bmm(ds, Kx).mul_(scale), part.G, K, part.L)
            dK = torch.bmm(ds.transpose(1, 2), Q).mul_(scale)
            back_K, back_V = (_rows(x, part.G, K, part.S) for x in (dK, dV))
            _write(dq, part, dQ)
            if isinstance(part.queries, Tensor):
                dk.index_add_(0, part.keys, back_K.to(wide))
                dv.index_add_(0, part.keys, back_V.to(wide))
                continue
            at = 0
            for a, b in part.keys:
                size = part.G * part.S if part.G > 1 else b - a
                dk[a:b].add_(back_K[at : at + size])
                dv[a:b].add_(back_V[at : at + size])
                at += size
        return dq, dk.to(k.dtype), dv.to(v.dtype), None


def _write(out_THD: Tensor, part: Part, mixed: Tensor) -> None:
    """Write the rows of a part to their positions in T, without its padding."""
    if not isinstance(part.queries, Tensor):
        out_THD[part.queries[0] : part.queries[1]] = mixed
    elif part.rows_R is None:
        out_THD[part.queries] = mixed
    else:
        out_THD[part.queries[part.rows_R]] = mixed[part.rows_R]
