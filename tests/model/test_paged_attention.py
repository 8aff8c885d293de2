"""Attention over pages: near the float64 twin, and to the bit the same in any chunks, company, threads and pages."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from demeanor.model import checkpoints, native
from demeanor.model.llama import Llama
from demeanor.model.pages import DTYPES, PAGE, CacheFormat, PagedCache, page_bytes
from demeanor.stack.schema import ModelShape

pytestmark = pytest.mark.skipif(native.build() is None, reason="no C++ compiler here")

SHAPES = [(4, 4, 12), (6, 2, 34), (9, 3, 64), (16, 1, 8), (2, 2, 80)]  # heads, kv heads, head size
CONTEXT = 320
LONG = 1300  # tokens: more than two stretches of kernels/attention.h
FORMATS: tuple[CacheFormat, ...] = ("fp32", "bf16", "fp16")


def policy(heads: int, kv_heads: int, head: int, layers: int = 2, context: int = CONTEXT) -> Llama:
    shape = ModelShape(
        layers=layers, width=head * heads, heads=heads, kv_heads=kv_heads, context=context, init="normal"
    )
    model = checkpoints.create(shape, 131, 3)
    with torch.no_grad():
        for block in model._blocks:  # sharp attention: a softmax over random keys is almost a mean
            block.self_attn.q_proj.weight.mul_(12)
            block.self_attn.k_proj.weight.mul_(12)
    return model


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 131, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def read(
    compiled: native.Native, tokens: list[int], slot: int, sizes: list[int], threads: int | None = None
) -> Tensor:
    """Logits of all tokens, read in parts of some sizes."""
    bounds = [0]
    while bounds[-1] < len(tokens):
        bounds.append(min(len(tokens), bounds[-1] + sizes[len(bounds) % len(sizes)]))
    return torch.cat(
        [
            compiled.forward(
                tokens[a:b], [slot] * (b - a), range(a, b), range(b - a), threads=threads
            ).logits_RV
            for a, b in pairwise(bounds)
        ]
    )


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head", "T"), [*((*shape, 300) for shape in SHAPES), (3, 1, 16, LONG)]
)
def test_mixed_values_are_those_of_float64_up_to_rounding(
    heads: int, kv_heads: int, head: int, T: int, format: CacheFormat
) -> None:
    """With u = 2^-24: a score of D products errs by (D + 2) u |q| |k|; a share by twice that, the exponential's 4e-7
    and n u of its sum; the mean of n values by n u more. Keys and values in a narrow format are rounded once, to the
    nearest, before all that. With keys in bf16, scaled queries are rounded to it too, and shares, which moves each by
    2^-8, and exponentials err by 4e-6."""
    model = policy(heads, kv_heads, head, layers=1, context=LONG)
    H, K, D = heads, kv_heads, head
    compiled = native.Native(model, PagedCache(model.config, 1, LONG, format=format))
    trace = compiled.trace(T)
    compiled.traced(text(T), [0] * T, range(T), [T - 1], trace, 0)
    layer = trace.layers[0]
    q, k, v = torch.split(layer.heads[:, : (H + 2 * K) * D], [H * D, K * D, K * D], 1)
    q = (q * (1 / torch.tensor(float(D)).sqrt())).to(DTYPES["bf16" if format == "bf16" else "fp32"]).double()
    k, v = k.to(DTYPES[format]).double(), v.to(DTYPES[format]).double()
    q_HTD = q.view(T, H, D).transpose(0, 1)
    k_HTD, v_HTD = (x.reshape(T, K, D).transpose(0, 1).repeat_interleave(H // K, dim=0) for x in (k, v))
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    share = (q_HTD @ k_HTD.transpose(1, 2)).masked_fill(hidden, -torch.inf).softmax(-1)
    wanted = (share @ v_HTD).transpose(0, 1).reshape(T, H * D)
    u = 2.0**-24
    score = (D + 2) * u * (q_HTD.abs() @ k_HTD.abs().transpose(1, 2)).masked_fill(hidden, 0).amax(-1)
    rounded = 2.0**-8 + 4e-6 if format == "bf16" else 0.0
    bound = (2 * score + 4e-7 + 2 * T * u + rounded)[..., None] * (share @ v_HTD.abs())
    assert ((layer.mixed - wanted).abs() <= bound.transpose(0, 1).reshape(T, H * D)).all()
    assert float(share.amax(-1)[:, 100:].median()) > 0.1, "some keys matter more than others"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("heads", "kv_heads", "head"), SHAPES)
def test_bits_depend_on_no_chunk_thread_or_page(
    heads: int, kv_heads: int, head: int, format: CacheFormat
) -> None:
    model, asked = policy(heads, kv_heads, head), text(200)
    cache = PagedCache(model.config, 3, CONTEXT, format=format)
    compiled = native.Native(model, cache)
    wanted = read(compiled, asked, 0, [200], threads=1)
    assert torch.equal(read(compiled, asked, 1, [1], threads=2), wanted)
    cache.table[2] = cache.table[2].flip(0)  # other pages, and what slot 1 wrote is in them
    cache.table[1], cache.table[2] = cache.table[2].clone(), cache.table[1].clone()
    cache.data[:, cache.table[2].long()] = torch.nan  # what was there before does not matter
    for threads, sizes in ((1, [33, 7]), (2, [64, 1, 40]), (3, [5, 96])):
        assert torch.equal(read(compiled, asked, 2, sizes, threads), wanted), (threads, sizes)


def test_company_changes_no_bit() -> None:
    """Rows of many slots, at positions of their own, in one call."""
    model, asked = policy(9, 3, 64), text(150)
    compiled = native.Native(model, PagedCache(model.config, 12, CONTEXT))
    wanted = read(compiled, asked, 0, [150])
    others = {slot: text(20 * slot, seed=slot) for slot in range(1, 11)}
    for slot, tokens in others.items():
        read(compiled, tokens[:-5], slot, [64])
    read(compiled, asked[:100], 11, [100])
    rows = [
        (tokens[i], slot, i) for slot, tokens in others.items() for i in range(len(tokens) - 5, len(tokens))
    ]
    rows += [(asked[i], 11, i) for i in range(100, 150)]
    tokens, slots, positions = (list(x) for x in zip(*rows))
    found = compiled.forward(tokens, slots, positions, range(len(rows) - 50, len(rows)), threads=2)
    assert torch.equal(found.logits_RV, wanted[100:])


def test_a_copied_prefix_gives_the_same_bits() -> None:
    model, asked = policy(6, 2, 34), text(3 * PAGE + 11)
    cache = PagedCache(model.config, 2, CONTEXT)
    compiled = native.Native(model, cache)
    wanted = read(compiled, asked, 0, [50])
    cache.copy(0, 1, len(asked) - 4)
    rest = range(len(asked) - 4, len(asked))
    found = compiled.forward(asked[-4:], [1] * 4, rest, range(4)).logits_RV
    assert torch.equal(found, wanted[-4:])


@pytest.mark.parametrize("format", FORMATS)
def test_threads_that_share_a_long_sequence_change_no_bit(format: CacheFormat) -> None:
    """A single row over a long context is dealt out by stretches; many rows, and one thread, go tile by tile."""
    model, asked = policy(3, 1, 16, context=LONG), text(LONG)
    compiled = native.Native(model, PagedCache(model.config, 3, LONG, format=format))
    wanted = read(compiled, asked, 0, [256], threads=1)
    read(compiled, asked[:500], 1, [250])
    one_by_one = read_on(compiled, asked, 1, 500, 1, threads=2)
    assert torch.equal(one_by_one, wanted[500:])
    read(compiled, asked[:1000], 2, [200])
    for threads, size in ((2, 5), (7, 24), (3, 1)):
        assert torch.equal(read_on(compiled, asked, 2, 1000, size, threads), wanted[1000:]), (threads, size)


def read_on(
    compiled: native.Native, tokens: list[int], slot: int, start: int, size: int, threads: int
) -> Tensor:
    """Logits of tokens from `start` on, `size` at a time."""
    parts = []
    for a in range(start, len(tokens), size):
        rows = tokens[a : a + size]
        found = compiled.forward(
            rows, [slot] * len(rows), range(a, a + len(rows)), range(len(rows)), threads=threads
        )
        parts.append(found.logits_RV)
    return torch.cat(parts)


def test_two_long_sequences_are_shared_by_many_threads() -> None:
    model, asked, other = policy(2, 2, 20, context=LONG), text(LONG), text(700, seed=1)
    compiled = native.Native(model, PagedCache(model.config, 2, LONG))
    wanted = [read(compiled, asked, 0, [256], 1)[-1], read(compiled, other, 1, [256], 1)[-1]]
    rows = ([asked[-1], other[-1]], [0, 1], [LONG - 1, 699])
    assert torch.equal(compiled.forward(*rows, [0, 1], threads=4).logits_RV, torch.stack(wanted))


def test_a_narrow_cache_takes_half_the_memory_and_moves_logits_little() -> None:
    model, asked = policy(6, 2, 64), text(300)
    found = {}
    for format in FORMATS:
        cache = PagedCache(model.config, 1, CONTEXT, format=format)
        assert cache.num_bytes == cache.num_pages * page_bytes(model.config, format) == cache.data.nbytes
        found[format] = read(native.Native(model, cache), asked, 0, [128]).log_softmax(-1)
    wide, half = page_bytes(model.config), page_bytes(model.config, "bf16")
    assert half == page_bytes(model.config, "fp16")
    assert 0.5 <= half / wide < 0.51
    share = found["fp32"].exp()
    lost = {name: float((share * (found["fp32"] - z)).sum(-1).mean()) for name, z in found.items()}
    assert 0 == lost["fp32"] < lost["fp16"] < lost["bf16"] < 1e-2


def test_an_fp16_cache_holds_numbers_beyond_its_range_as_its_greatest() -> None:
    """Up to rounding the greatest fp16 is 65,504: no infinity stands in the cache, so no answer turns to NaN."""
    model = policy(2, 2, 16, layers=1)
    with torch.no_grad():
        model._blocks[0].self_attn.v_proj.weight.mul_(1e7)
    cache = PagedCache(model.config, 1, CONTEXT, format="fp16")
    assert torch.isfinite(read(native.Native(model, cache), text(40), 0, [40])).all()
    assert cache.data.abs().max() == 65504
