"""Attention over token trees: each segment attends to its context ranges, then causally to itself. No padding, no T x T mask.

In: q, k, v of a whole batch and its segments. Out: the mixed values. Segments of one shape (own length, context length) run as
one batched product; the slow twin with a dense mask is in the tests.

Softmax scores are recomputed in the backward pass from the saved log-sum-exp (Dao et al. 2022, arXiv 2205.14135, section 3.1);
on CPU that is faster than SDPA's own bf16 backward.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demeanor.tensors import Segment


class Bucket(NamedTuple):
    """Segments of one shape: which tokens ask (G x L) and which they may see (G x S, context first)."""

    queries_GL: Tensor
    keys_GS: Tensor
    whole: bool
    """The queries are all tokens, in order, and are their own keys: no gathering is needed."""


def buckets(segments: Sequence[Segment], device: torch.device) -> tuple[Bucket, ...]:
    """Group segments by shape; made once per batch, used by every layer and the backward pass."""
    groups: dict[tuple[int, int], list[Segment]] = defaultdict(list)
    for segment in segments:
        if segment.end > segment.start:
            groups[(segment.end - segment.start, sum(b - a for a, b in segment.context))].append(segment)
    total = max((s.end for s in segments), default=0)
    found = []
    for (length, context), members in groups.items():
        starts = torch.tensor([s.start for s in members])
        own_GL = starts[:, None] + torch.arange(length)
        before = [torch.cat([torch.arange(a, b) for a, b in s.context]) if s.context else torch.empty(0, dtype=torch.long) for s in members]
        keys_GS = torch.cat([torch.stack(before), own_GL], 1) if context else own_GL
        whole = len(groups) == 1 and not context and own_GL.numel() == total and bool((own_GL.flatten() == torch.arange(total)).all())
        found.append(Bucket(own_GL.to(device), keys_GS.to(device), whole))
    return tuple(found)


@lru_cache(maxsize=256)
def _mask(length: int, keys: int, device: torch.device) -> Tensor:
    """Bottom-right causal additive mask, length x keys, fp32."""
    return torch.full((length, keys), float("-inf"), device=device).triu(1 + keys - length)


def tree_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, parts: Sequence[Bucket]) -> Tensor:
    """Mix values over a batch of token trees: q (T, H, D), k and v (T, K, D) with H a multiple of K; returns (T, H, D)."""
    mixed: Tensor = _TreeAttention.apply(q_THD, k_TKD, v_TKD, tuple(parts))  # type: ignore[no-untyped-call]
    return mixed


def _heads_first(x_THD: Tensor, index_GL: Tensor, whole: bool) -> Tensor:
    """Gather tokens into (G, H, L, D)."""
    G, L = index_GL.shape
    rows = x_THD if whole else x_THD[index_GL.flatten()]
    return rows.view(G, L, *x_THD.shape[1:]).transpose(1, 2)


def _grouped(x_GHLD: Tensor, K: int) -> Tensor:
    """Fold query heads that share a key head into the rows: (G, H, L, D) -> (G*K, H/K * L, D)."""
    G, H, L, D = x_GHLD.shape
    return x_GHLD.reshape(G * K, (H // K) * L, D)


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: tuple[Bucket, ...]) -> Tensor:
        H, K, D = q.shape[1], k.shape[1], q.shape[2]
        out, lse_TH = torch.zeros_like(q), torch.zeros(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
        for queries, keys, whole in parts:
            (G, L), S = queries.shape, keys.shape[1]
            Q = _grouped(_heads_first(q, queries, whole), K)
            Kx, V = (_heads_first(x, keys, whole).reshape(G * K, S, D) for x in (k, v))
            scores = torch.bmm(Q, Kx.transpose(1, 2)).to(lse_TH.dtype).mul_(D ** -0.5)
            scores.view(G * K, H // K, L, S).add_(_mask(L, S, q.device))
            lse = scores.logsumexp(-1, keepdim=True)
            mixed = torch.bmm(scores.sub_(lse).exp_().to(q.dtype), V).view(G, H, L, D).transpose(1, 2).reshape(G * L, H, D)
            rows = lse.view(G, H, L).transpose(1, 2).reshape(G * L, H)
            if whole:
                out, lse_TH = mixed, rows
            else:
                out[queries.flatten()], lse_TH[queries.flatten()] = mixed, rows
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
        for queries, keys, whole in ctx.parts:
            (G, L), S = queries.shape, keys.shape[1]
            Q, dO = (_grouped(_heads_first(x, queries, whole), K) for x in (q, grad))
            Kx, V = (_heads_first(x, keys, whole).reshape(G * K, S, D) for x in (k, v))
            lse, delta = (_grouped(_heads_first(x[..., None], queries, whole), K) for x in (lse_TH, delta_TH))
            p = torch.bmm(Q, Kx.transpose(1, 2)).to(wide).mul_(scale)
            p.view(G * K, H // K, L, S).add_(_mask(L, S, q.device))
            p.sub_(lse).exp_()
            dV = torch.bmm(p.to(q.dtype).transpose(1, 2), dO)
            ds = torch.bmm(dO, V.transpose(1, 2)).to(wide).sub_(delta).mul_(p).mul_(scale).to(q.dtype)
            dQ = torch.bmm(ds, Kx).view(G, H, L, D).transpose(1, 2).reshape(G * L, H, D)
            dK = torch.bmm(ds.transpose(1, 2), Q)
            back = [x.view(G, K, S, D).transpose(1, 2).reshape(G * S, K, D) for x in (dK, dV)]
            if whole:
                return dQ, back[0], back[1], None
            dq[queries.flatten()] = dQ
            dk.index_add_(0, keys.flatten(), back[0].to(wide))
            dv.index_add_(0, keys.flatten(), back[1].to(wide))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None
