"""Random initial weights: Hugging Face's normal initialisation, optionally with mimetic attention.

Mimetic initialisation makes each head's query-key product near the identity and each layer's value-output
product near minus the identity, so that matching equal tokens need not be learned.
Source: Trockman & Kolter 2023, arXiv 2305.09828. Deviations: 1. the query-key scale is 0.2, not 0.7, which
saturates the softmax behind an RMS norm (LOG.md, 2026-11-23). 2. With fewer key than query heads, the query
heads of a group start equal and the value-output product stays normal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from demeanor.model.llama import Attention, Config, Llama

STD, QK, VO = 0.02, 0.2, 0.4


@torch.no_grad()
def initialise(model: Llama, seed: int, *, mimetic: bool) -> None:
    """Fill a model with random weights determined by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.fill_(1.0)
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * STD)
    if mimetic:
        for module in model.modules():
            if isinstance(module, Attention):
                _mimic(module, model.config, generator)


def _mimic(attention: Attention, config: Config, generator: torch.Generator) -> None:
    width, head, group = config.hidden_size, config.head_dim, attention.heads // attention.kv_heads
    for kv in range(attention.kv_heads):
        left, right = _factors(_near_identity(width, QK, QK, generator), head)
        attention.k_proj.weight[kv * head : (kv + 1) * head] = right
        for h in range(kv * group, (kv + 1) * group):
            attention.q_proj.weight[h * head : (h + 1) * head] = left
    inner = attention.heads * head
    if attention.heads == attention.kv_heads and inner == width:
        left, right = _factors(_near_identity(width, VO, -VO, generator), width)
        attention.o_proj.weight.copy_(left.T)
        attention.v_proj.weight.copy_(right)


def _near_identity(width: int, noise: float, identity: float, generator: torch.Generator) -> Tensor:
    random = torch.randn(width, width, generator=generator)
    return noise * random / math.sqrt(width) + identity * torch.eye(width)


def _factors(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A and B (rank, width) such that A^T B is the best approximation of `product`."""
    U, S, Vh = torch.linalg.svd(product)
    root = S[:rank].sqrt()
    return (U[:, :rank] * root).T, (Vh[:rank].T * root).T
