"""Floating-point work: what a batch needs (6N and attention), and what this machine reaches in one matrix product.

In: a model's parameter shapes, a batch. Out: FLOPs, FLOP/s. Only useful work counts: no padding, no recomputation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from demeanor.tensors import TokenBatch

EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")
GEMM_SIZE, GEMM_SIZE_CUDA, PEAK_WAIT_S = 1024, 8192, 0.2


def training_flops(model: nn.Module, *, head: bool) -> Callable[[TokenBatch], float]:
    """Count forward-and-backward FLOPs of a batch: 6 per weight and token (4 if it is frozen), 12 per width and attended pair.

    The vocabulary head (`head`) is paid only at scored tokens. Source: Kaplan et al., arXiv 2001.08361, table 1.
    """
    shapes = {name: p for name, p in model.named_parameters() if p.ndim >= 2}
    work = {name: (6.0 if p.requires_grad else 4.0) * p.numel() for name, p in shapes.items()}
    trunk = sum(flops for name, flops in work.items() if not name.endswith(EMBEDDINGS))
    vocabulary = (
        max((flops for name, flops in work.items() if name.endswith(EMBEDDINGS)), default=0.0)
        if head
        else 0.0
    )
    queries = sum(p.shape[0] for name, p in shapes.items() if name.endswith("q_proj.weight"))

    def count(batch: TokenBatch) -> float:
        products = trunk * batch.tokens_T.numel() + vocabulary * batch.scored_C.numel()
        return products + 12.0 * queries * attended_pairs(batch)

    return count


def attended_pairs(batch: TokenBatch) -> int:
    """How many (query, key) pairs attention computes: all of the context, and causally the segment itself."""
    total = 0
    for segment in batch.segments:
        size = segment.end - segment.start
        total += size * sum(end - start for start, end in segment.context) + size * (size + 1) // 2
    return total


@cache
def measured_peak(device: str, dtype: torch.dtype) -> float:
    """Best FLOP/s of a square matrix product on this device now; takes about 0.2 s, once per process."""
    size = GEMM_SIZE_CUDA if device == "cuda" else GEMM_SIZE
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, begun = float("inf"), time.perf_counter()
    while True:
        start = time.perf_counter()
        product = a @ a
        product[0, 0].item()  # waits for an asynchronous device
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() - begun > PEAK_WAIT_S:
            return 2.0 * size**3 / best
