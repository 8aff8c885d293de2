"""The layout that a varlen kernel reads on CUDA, run a segment at a time, against the CPU's attention."""

from __future__ import annotations

import pytest
import torch

from demeanor.model import varlen
from demeanor.model.attention import BLOCK, LONG, blocks, buckets, joined, tree_attention
from demeanor.model.tensors import Segment

CPU = torch.device("cpu")
TREES = (
    Segment(0, 3),
    Segment(3, 7, ((0, 3),)),
    Segment(7, 8, ((0, 3),)),
    Segment(8, 28),
    Segment(28, 45, ((8, 28),)),
    Segment(45, 60, ((8, 28),)),
)


def qkv(tokens: int, kv_heads: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, heads, 8, generator=generator) for heads in (4, kv_heads, kv_heads)]


def test_a_varlen_layout_computes_what_the_segments_say() -> None:
    q, k, v = qkv(60)
    at = varlen.layout(joined(TREES), CPU)
    assert torch.allclose(
        varlen.attention(q, k, v, at), tree_attention(q, k, v, buckets(TREES, CPU)), atol=1e-6
    )


def test_rows_without_context_gather_no_keys() -> None:
    at = varlen.layout([Segment(0, 5), Segment(5, 9)], CPU)
    assert at.whole
    assert at.ends_q.tolist() == at.ends_k.tolist() == [0, 5, 9]
    assert (at.longest_q, at.longest_k) == (5, 5)


def test_a_context_is_copied_before_the_segment_that_sees_it() -> None:
    at = varlen.layout([Segment(0, 3), Segment(3, 5, ((0, 2),))], CPU)
    assert at.keys_K.tolist() == [0, 1, 2, 0, 1, 3, 4]
    assert (at.ends_q.tolist(), at.ends_k.tolist()) == ([0, 3, 5], [0, 3, 7])


def test_segments_that_leave_out_tokens_are_refused() -> None:
    with pytest.raises(AssertionError, match="must cover the batch in order"):
        varlen.layout([Segment(0, 3), Segment(4, 5)], CPU)


def test_a_long_segment_is_cut_into_blocks_that_change_nothing() -> None:
    segments = (Segment(0, LONG + 3 * BLOCK + 5), Segment(LONG + 3 * BLOCK + 5, LONG + 3 * BLOCK + 9))
    cut = list(blocks(segments))
    assert cut[0] == Segment(0, BLOCK)
    assert cut[1] == Segment(BLOCK, 2 * BLOCK, ((0, BLOCK),))
    assert cut[-1] == segments[-1]
    q, k, v = qkv(segments[-1].end)
    whole = varlen.one_by_one(q, k, v, varlen.layout(segments, CPU))
    assert torch.allclose(tree_attention(q, k, v, buckets(segments, CPU)), whole, atol=1e-5)
