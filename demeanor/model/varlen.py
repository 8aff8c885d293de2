"""Tree attention on CUDA: one varlen kernel over all segments, keys and values gathered for each segment.

In: segments. Out: a layout (indices and cumulative lengths) and the attention over it. Each segment is one
"sequence" of FlashAttention, bottom-right causal; its context is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from demeanor.model.tensors import Segment


class Layout(NamedTuple):
    """Queries are in the order of T, keys are those at `keys_K`; lengths are cumulative, int32."""

    keys_K: Tensor
    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int
    whole: bool  # no segment has a context, so nothing is gathered


def layout(segments: Sequence[Segment], device: torch.device) -> Layout:
    """Lay segments out for a varlen kernel; they must cover T in order, as `joined` segments do."""
    at = 0
    keys: list[Tensor] = []
    ends_q, ends_k = [0], [0]
    for segment in segments:
        assert segment.start == at, (
            f"segment starts at {segment.start}, wanted {at}: segments must cover the batch in order"
        )
        at = segment.end
        ranges = (*segment.context, (segment.start, segment.end))
        keys += [torch.arange(a, b) for a, b in ranges]
        ends_q.append(at)
        ends_k.append(ends_k[-1] + sum(b - a for a, b in ranges))
    whole = not any(s.context for s in segments)
    longest_q, longest_k = (max((b - a for a, b in pairwise(e)), default=0) for e in (ends_q, ends_k))
    counts_q, counts_k = (torch.tensor(e, dtype=torch.int32, device=device) for e in (ends_q, ends_k))
    keys_K = torch.cat(keys).to(device) if keys else torch.empty(0, dtype=torch.long, device=device)
    return Layout(keys_K, counts_q, counts_k, longest_q, longest_k, whole)


def attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, at: Layout) -> Tensor:
    """Mix values: q (T, H, D), k and v (T, K, D); uses the kernel if it supports the dtype, else
    `one_by_one`."""
    k, v = k_TKD, v_TKD
    if not at.whole:
        k, v = k_TKD.index_select(0, at.keys_K), v_TKD.index_select(0, at.keys_K)
    if q_THD.is_cuda and q_THD.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn  # type: ignore[import-not-found,unused-ignore]

        mixed = varlen_attn(
            q_THD,
            k,
            v,
            at.ends_q,
            at.ends_k,
            at.longest_q,
            at.longest_k,
            window_size=(-1, 0),
            enable_gqa=q_THD.shape[1] != k.shape[1],
        )
        assert isinstance(mixed, Tensor)
        return mixed
    return one_by_one(q_THD, k, v, at)


def one_by_one(q_THD: Tensor, k_KHD: Tensor, v_KHD: Tensor, at: Layout) -> Tensor:
    """Compute the same a segment at a time: for tests, and for fp32 on CUDA."""
    found = []
    q_ends, k_ends = at.ends_q.tolist(), at.ends_k.tolist()
    for (a, b), (c, d) in zip(pairwise(q_ends), pairwise(k_ends)):
        q, k, v = (x.transpose(0, 1)[None] for x in (q_THD[a:b], k_KHD[c:d], v_KHD[c:d]))
        mask = torch.ones(b - a, d - c, dtype=torch.bool, device=q.device).tril(d - c - (b - a))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        found.append(mixed[0].transpose(0, 1))
    return torch.cat(found) if found else q_THD
