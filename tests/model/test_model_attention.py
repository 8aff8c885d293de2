"""Tree attention against its slow twin, a dense mask: values and gradients, in fp64, fp32 and bf16."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from demeanor.model import attention
from demeanor.model.attention import buckets, joined, tree_attention
from demeanor.model.tensors import Segment
from tests.conftest import each

CPU = torch.device("cpu")
EQUAL = (Segment(0, 5), Segment(5, 10), Segment(10, 15))
FOREST = (
    Segment(0, 3),
    Segment(3, 7, ((0, 3),)),
    Segment(7, 8, ((0, 3),)),  # a prompt and two branches
    Segment(8, 28),
    Segment(28, 45, ((8, 28),)),  # a longer one: another bucket
    Segment(45, 46),
    Segment(46, 51, ((45, 46),)),  # a prompt of one shared token
    Segment(51, 55, ((0, 3), (3, 7))),
)  # a context of two ranges
MANY = tuple(
    s
    for i in range(0, 200, 20)
    for s in (
        Segment(i, i + 7),
        Segment(i + 7, i + 12, ((i, i + 7),)),
        Segment(i + 12, i + 20, ((i, i + 7),)),
    )
)
LAYOUTS = [EQUAL, FOREST, MANY, (Segment(0, 1),), (Segment(0, 4), Segment(4, 4), Segment(4, 21))]


def dense(q: Tensor, k: Tensor, v: Tensor, segments: tuple[Segment, ...]) -> Tensor:
    """The slow twin: one T x T mask, one softmax."""
    T, group = q.shape[0], q.shape[1] // k.shape[1]
    may = torch.zeros(T, T, dtype=torch.bool)
    for start, end, context in segments:
        may[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        for a, b in context:
            may[start:end, a:b] = True
    keys, values = (x.repeat_interleave(group, 1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q, keys) * q.shape[-1] ** -0.5
    return torch.einsum("hts,shd->thd", scores.masked_fill(~may, float("-inf")).softmax(-1), values)


def random(segments: tuple[Segment, ...], kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    generator, T = torch.Generator().manual_seed(0), max(s.end for s in segments)
    shapes = ((T, 4, 6), (T, kv_heads, 6), (T, kv_heads, 6))
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes
    ]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("segments", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
def test_values_and_gradients_equal_a_dense_mask(
    segments: tuple[Segment, ...], kv_heads: int, dtype: torch.dtype, close: float
) -> None:
    ours = random(segments, kv_heads, dtype)
    theirs = [x.detach().double().requires_grad_() for x in ours]
    found, wanted = tree_attention(*ours, buckets(segments, CPU)), dense(*theirs, segments)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), wanted, atol=close)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    found.backward(pull)
    wanted.backward(pull.double())
    for x, y in zip(ours, theirs):
        assert x.grad is not None
        assert y.grad is not None
        assert torch.allclose(x.grad.double(), y.grad, atol=close * max(1.0, float(y.grad.abs().max())))


def test_gradients_pass_the_numerical_check() -> None:
    segments = (Segment(0, 2), Segment(2, 5, ((0, 2),)), Segment(5, 6, ((0, 2),)))
    parts = buckets(segments, CPU)
    assert torch.autograd.gradcheck(
        lambda q, k, v: tree_attention(q, k, v, parts), random(segments, 2, torch.float64)
    )


def test_recomputed_probabilities_give_the_same_gradients_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for bytes_kept in (1 << 30, 0):
        monkeypatch.setattr(attention, "KEEP_BYTES", bytes_kept)
        ours = random(FOREST, 2, torch.float32)
        tree_attention(*ours, buckets(FOREST, CPU)).square().sum().backward()
        found.append([x.grad for x in ours])
    assert [len(x) for x in found] == [len(ours)] * 2
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in each(zip(*found)))


def test_the_first_branch_goes_on_with_its_prompts_row() -> None:
    assert joined(FOREST[:3]) == [Segment(0, 7), Segment(7, 8, ((0, 3),))]
    assert joined([Segment(0, 4), Segment(4, 4), Segment(4, 21)]) == [Segment(0, 4), Segment(4, 21)]


def test_what_a_segment_may_not_see_cannot_change_it() -> None:
    q, k, v = (x.detach() for x in random(FOREST, 4, torch.float32))
    before = tree_attention(q, k, v, buckets(FOREST, CPU))
    k[3:7], v[3:7] = 99.0, 99.0
    after = tree_attention(q, k, v, buckets(FOREST, CPU))
    changed = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
    assert set(changed) <= {*range(3, 7), *range(51, 55)}
    assert changed


def test_many_short_segments_share_a_few_buckets() -> None:
    """Python's overhead is per bucket: 64 rows of 20 to 35 tokens must not make 64 products."""
    ends = [0]
    for i in range(64):
        ends.append(ends[-1] + 20 + i % 16)
    found = buckets([Segment(a, b) for a, b in itertools.pairwise(ends)], CPU)
    assert len(found) <= 2
    assert len(buckets([Segment(i * 9, i * 9 + 9) for i in range(64)], CPU)) == 1
