"""Compiled tree attention against the dense mask in fp64, against torch's products, and against itself in other company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from demeanor.model import attention_kernel, training_library
from demeanor.model.attention import buckets, joined, tree_attention
from demeanor.model.attention_kernel import layout
from demeanor.model.tensors import Segment
from tests.model.test_fused import Trained, distance
from tests.model.test_model_attention import CPU, EQUAL, FOREST, MANY, dense

pytestmark = pytest.mark.skipif(
    training_library.build() is None, reason="no C++ compiler here, or torch has no OpenMP"
)

LONG = (Segment(0, 117), Segment(117, 260, ((0, 100),)), Segment(260, 261), Segment(261, 300, ((260, 261),)))
FORESTS = [EQUAL, FOREST, MANY, LONG, (Segment(0, 1),), (Segment(0, 4), Segment(4, 4), Segment(4, 21))]


def drawn(segments: tuple[Segment, ...], heads: int, kv_heads: int, depth: int) -> list[Tensor]:
    draw, T = torch.Generator().manual_seed(0), max(s.end for s in segments)
    return [
        torch.randn(T, n, depth, generator=draw).bfloat16().requires_grad_()
        for n in (heads, kv_heads, kv_heads)
    ]


def through(given: list[Tensor], parts: object, slope: Tensor) -> list[Tensor]:
    """The mixed values and the gradients of q, k and v."""
    own = [x.detach().clone().requires_grad_() for x in given]
    out = tree_attention(*own, parts)  # type: ignore[arg-type]
    return [out.detach(), *torch.autograd.grad(out, own, slope)]


@pytest.mark.parametrize(("heads", "kv_heads", "depth"), [(3, 1, 64), (4, 2, 32), (2, 2, 48)])
@pytest.mark.parametrize("segments", FORESTS)
def test_values_and_gradients_are_as_near_to_a_dense_mask_in_fp64_as_those_of_torchs_products(
    segments: tuple[Segment, ...], heads: int, kv_heads: int, depth: int
) -> None:
    given = drawn(segments, heads, kv_heads, depth)
    slope = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = [x.detach().double().requires_grad_() for x in given]
    out = dense(*exact, segments)
    wanted = [out.detach(), *torch.autograd.grad(out, exact, slope.double())]
    ours, plain = (
        through(given, parts, slope) for parts in (layout(joined(segments)), buckets(segments, CPU))
    )
    assert len(wanted) == 4
    for name, x, y, truth in zip(("out", "dq", "dk", "dv"), ours, plain, wanted, strict=True):
        assert x.dtype == torch.bfloat16
        far, theirs = ((z.double() - truth).norm() for z in (x, y))
        assert far <= 1.2 * theirs + 1e-3 * truth.norm(), name


def test_bits_depend_neither_on_threads_nor_on_other_trees() -> None:
    given = drawn(LONG, 6, 3, 64)
    slope = torch.randn(given[0].shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(through(given, layout(LONG), slope))
    finally:
        torch.set_num_threads(threads)
    alone = through([x[:260] for x in given], layout(LONG[:2]), slope[:260])
    assert len(alone) == len(found[0]) == 4
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert all(torch.equal(x, y[:260]) for x, y in zip(alone, found[0], strict=True))


def test_what_a_segment_may_not_see_cannot_change_it() -> None:
    q, k, v = (x.detach() for x in drawn(FOREST, 4, 4, 32))
    parts = layout(joined(FOREST))
    before = tree_attention(q, k, v, parts)
    k[3:7], v[3:7] = 99.0, 99.0
    changed = (before != tree_attention(q, k, v, parts)).flatten(1).any(1).nonzero().flatten().tolist()
    assert set(changed) <= {*range(3, 7), *range(51, 55)}
    assert changed


def test_scores_of_a_hundred_and_more_stay_finite() -> None:
    q, k, v = drawn(LONG, 2, 1, 64)
    found = through([q * 40, k * 40, v], layout(LONG), torch.ones_like(q))
    assert len(found) == 4
    assert all(bool(x.isfinite().all()) for x in found)


def test_trees_are_units_and_the_costly_ones_come_first() -> None:
    trees = layout(joined(FOREST[:7]))
    assert trees.units.tolist() == [[0, 1, 8, 45], [1, 3, 0, 8], [3, 4, 45, 51]]
    assert trees.segments[1:3].tolist() == [[0, 7, 1, 2, 7], [7, 8, 2, 4, 4]]
    assert trees.ranges[1:4].tolist() == [[0, 7], [0, 3], [7, 8]]
    assert len(layout(joined(FOREST)).units) == 1  # the last segment reads the first tree


def test_a_wide_model_is_trained_with_it_and_is_as_near_to_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, plain = Trained(bf16=False, adapter=False), Trained(bf16=True, adapter=False)
    monkeypatch.setattr(attention_kernel, "LEAST_WIDTH", 96)
    ours = Trained(bf16=True, adapter=False)
    again = Trained(bf16=True, adapter=False, recompute=True)
    assert not torch.equal(ours.logprobs, plain.logprobs)  # so it was the kernel that ran
    assert distance(ours.logprobs, exact.logprobs) < 1.3 * distance(plain.logprobs, exact.logprobs)
    far = {
        n: (distance(g, exact.slopes[n]), distance(plain.slopes[n], exact.slopes[n]))
        for n, g in ours.slopes.items()
    }
    assert len(far) == len(exact.slopes)
    assert {n: pair for n, pair in far.items() if pair[0] > 1.3 * pair[1] + 1e-3} == {}
    assert [n for n, g in ours.slopes.items() if not torch.equal(g, again.slopes[n])] == []
