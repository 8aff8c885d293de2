"""Log-probabilities of given tokens, only where they are asked for.

In: hidden states at scored positions, the output matrix, targets. Out: log-probs in nats. It refuses to see any other position.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LARGE = 256 << 20
"""Bytes of logits (bf16 and fp32 copies, 6 a number) above which they are made in chunks and recomputed in the backward pass."""


def token_logprobs(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, *, chunk: int = 2048,
                   large_bytes: int = LARGE) -> Tensor:
    """Log-probabilities (nats, fp32) of `targets_C`, softmax in fp32; logits beyond `large_bytes` are never all alive."""
    chunk = min(chunk, max(1, large_bytes // (6 * weight_VD.shape[0])))
    if hidden_CD.shape[0] * weight_VD.shape[0] * 6 <= large_bytes:
        return _logprobs(hidden_CD, weight_VD, targets_C)
    parts = [checkpoint(_logprobs, h, weight_VD, t, use_reentrant=False)
             for h, t in zip(torch.split(hidden_CD, chunk), torch.split(targets_C, chunk))]
    return torch.cat([p for p in parts if isinstance(p, Tensor)])


def _logprobs(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor) -> Tensor:
    logits_CV = F.linear(hidden_CD, weight_VD)
    return -F.cross_entropy(logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)), targets_C, reduction="none")
