"""Attention over token trees: each segment attends to its context ranges, then causally to itself; no T x T mask.

In: q, k, v of a whole batch and its segments. Out: the mixed values. Segments of about the same shape run as one batched product,
padded to a multiple of 16 inside attention alone; the slow twin with a dense mask is in the tests.

Probabilities are recomputed in the backward pass from the saved log-sum-exp (Dao et al. 2022, arXiv 2205.14135, section 3.1); on
CPU that is faster than SDPA's own bf16 backward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demeanor.tensors import Segment

STEP = 16


class Bucket(NamedTuple):
    """Segments of about one shape: which tokens ask (G x L) and which they may see (G x S, context first).

    `mask` is additive, (L, S) or (G, 1, 1, L, S). `rows_R` are the places in G x L that hold a token, None if all do.
    """

    queries_GL: Tensor
    keys_GS: Tensor
    mask: Tensor
    rows_R: Tensor | None
    whole: bool
    """The queries are all tokens, in order, and are their own keys: nothing is gathered."""


def buckets(segments: Sequence[Segment], device: torch.device) -> tuple[Bucket, ...]:
    """Group segments by padded shape; made once per batch, used by every layer and the backward pass."""
    total = max((s.end for s in segments), default=0)
    lengths = {s.end - s.start for s in segments}
    if len(lengths) == 1 and not any(s.context for s in segments) and sum(s.end - s.start for s in segments) == total:
        index_GL = torch.arange(total, device=device).view(-1, lengths.pop())
        return (Bucket(index_GL, index_GL, _causal(index_GL.shape[1], index_GL.shape[1], device), None, True),)
    groups: dict[tuple[int, int], list[Segment]] = defaultdict(list)
    for segment in segments:
        if segment.end > segment.start:
            groups[(_up(segment.end - segment.start), _up(sum(b - a for a, b in segment.context)))].append(segment)
    return tuple(_bucket(members, length, context, device) for (length, context), members in groups.items())


def _up(count: int) -> int:
    """Round up to a multiple of STEP, of 1/4 of the next power of two when that is more."""
    step = max(STEP, 1 << max(0, count.bit_length() - 3))
    return -(-count // step) * step


def _causal(length: int, keys: int, device: torch.device) -> Tensor:
    """Bottom-right causal additive mask, length x keys, fp32."""
    return torch.full((length, keys), float("-inf"), device=device).triu(1 + keys - length)


def _bucket(members: Sequence[Segment], length: int, context: int, device: torch.device) -> Bucket:
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
            seen_GC[g, :before_G[g]] = torch.cat(found)
    hidden_GC = torch.arange(context) >= before_G
    mask = torch.cat([hidden_GC[:, None].expand(-1, length, -1), (own_L[None] > own_L[:, None]).expand(len(members), -1, -1)], -1)
    additive = torch.zeros(mask.shape).masked_fill_(mask, float("-inf"))[:, None, None]
    rows_R = None if bool(valid_GL.all()) else valid_GL.flatten().nonzero().squeeze(-1).to(device)
    return Bucket(queries_GL.to(device), torch.cat([seen_GC, queries_GL], 1).to(device), additive.to(device), rows_R, False)


def tree_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, parts: Sequence[Bucket]) -> Tensor:
    """Mix values over a batch of token trees: q (T, H, D), k and v (T, K, D) with H a multiple of K; returns (T, H, D)."""
    mixed: Tensor = _TreeAttention.apply(q_THD, k_TKD, v_TKD, tuple(parts))  # type: ignore[no-untyped-call]
    return mixed


def _heads_first(x_THD: Tensor, index_GL: Tensor, whole: bool) -> Tensor:
    """Gather tokens into (G, H, L, D)."""
    G, L = index_GL.shape
    rows = x_THD if whole else x_THD.index_select(0, index_GL.flatten())
    return rows.view(G, L, *x_THD.shape[1:]).transpose(1, 2)


def _grouped(x_GHLD: Tensor, K: int) -> Tensor:
    """Fold query heads that share a key head into the rows: (G, H, L, D) -> (G*K, H/K * L, D)."""
    G, H, L, D = x_GHLD.shape
    return x_GHLD.reshape(G * K, (H // K) * L, D)


def _scores(Q: Tensor, Kx: Tensor, part: Bucket, K: int, scale: float, wide: torch.dtype) -> Tensor:
    """Masked scores (G*K, H/K * L, S) in `wide`."""
    (G, L), S = part.queries_GL.shape, part.keys_GS.shape[1]
    scores = torch.bmm(Q, Kx.transpose(1, 2)).to(wide).mul_(scale)
    scores.view(G, K, -1, L, S).add_(part.mask)
    return scores


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: tuple[Bucket, ...]) -> Tensor:
        H, K, D = q.shape[1], k.shape[1], q.shape[2]
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse_TH = torch.zeros_like(q), torch.zeros(q.shape[:2], dtype=wide, device=q.device)
        for part in parts:
            (G, L), S = part.queries_GL.shape, part.keys_GS.shape[1]
            Q = _grouped(_heads_first(q, part.queries_GL, part.whole), K)
            Kx, V = (_heads_first(x, part.keys_GS, part.whole).reshape(G * K, S, D) for x in (k, v))
            scores = _scores(Q, Kx, part, K, D ** -0.5, wide)
            lse = scores.logsumexp(-1, keepdim=True)
            mixed = torch.bmm(scores.sub_(lse).exp_().to(q.dtype), V).view(G, H, L, D).transpose(1, 2).reshape(G * L, H, D)
            rows = lse.view(G, H, L).transpose(1, 2).reshape(G * L, H)
            if part.whole:
                out, lse_TH = mixed, rows
                continue
            tokens = part.queries_GL.flatten()
            if part.rows_R is not None:
                tokens, mixed, rows = tokens[part.rows_R], mixed[part.rows_R], rows[part.rows_R]
            out[tokens], lse_TH[tokens] = mixed, rows
        ctx.save_for_backward(q, k, v, out, lse_TH)
        ctx.parts = parts
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, lse_TH = ctx.saved_tensors
        grad = grads[0].contiguous()
        H, K, D = q.shape[1], k.shape[1], q.shape[2]
        scale, wide = D ** -0.5, lse_TH.dtype
        delta_TH = (grad.to(wide) * out.to(wide)).sum(-1)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for part in ctx.parts:
            (G, L), S = part.queries_GL.shape, part.keys_GS.shape[1]
            Q, dO = (_grouped(_heads_first(x, part.queries_GL, part.whole), K) for x in (q, grad))
            Kx, V = (_heads_first(x, part.keys_GS, part.whole).reshape(G * K, S, D) for x in (k, v))
            lse, delta = (_grouped(_heads_first(x[..., None], part.queries_GL, part.whole), K) for x in (lse_TH, delta_TH))
            if part.rows_R is not None:  # what padding asked for must not flow back
                asked = torch.zeros(G * L, dtype=grad.dtype, device=grad.device).index_fill_(0, part.rows_R, 1.0)
                asked = asked.view(G, 1, 1, L, 1).expand(G, K, H // K, L, 1).reshape(G * K, -1, 1)
                dO, delta = dO * asked, delta * asked
            p = _scores(Q, Kx, part, K, scale, wide).sub_(lse).exp_()
            dV = torch.bmm(p.to(q.dtype).transpose(1, 2), dO)
            ds = torch.bmm(dO, V.transpose(1, 2)).to(wide).sub_(delta).mul_(p).mul_(scale).to(q.dtype)
            dQ = torch.bmm(ds, Kx).view(G, H, L, D).transpose(1, 2).reshape(G * L, H, D)
            dK = torch.bmm(ds.transpose(1, 2), Q)
            back = [x.view(G, K, S, D).transpose(1, 2).reshape(G * S, K, D) for x in (dK, dV)]
            if part.whole:
                return dQ, back[0], back[1], None
            tokens = part.queries_GL.flatten()
            if part.rows_R is not None:
                tokens, dQ = tokens[part.rows_R], dQ[part.rows_R]
            dq[tokens] = dQ
            dk.index_add_(0, part.keys_GS.flatten(), back[0].to(wide))
            dv.index_add_(0, part.keys_GS.flatten(), back[1].to(wide))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None
