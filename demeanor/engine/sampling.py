"""Logits to tokens: pure functions over a batch of rows; every random number comes in as an argument.

A draw is an exponential race (Gumbel-max in other words): with E ~ Exp(1) per token, argmax p/E has distribution p.
Why not the inverse CDF: a last-bit change of the logits (another batch size, another kernel) moves every edge of a CDF
and changed 15-30 times more draws; a race changes only as many as the total variation distance demands.
Knows nothing of requests, text or the model. Shapes: N rows, V vocabulary, K alternatives.
"""

from __future__ import annotations

import torch
from torch import Tensor

_HEAD = 64  # tokens looked at before a full sort of the vocabulary (a sort of 32 x 2048 costs 3 ms, this 0.4)
_TINY = 1e-30


def race_noise(generator: torch.Generator, vocab_size: int) -> Tensor:
    """Draw the uniform numbers of one token: uniform_V in [0, 1), float32 but fine-grained near 0, where races are won."""
    return torch.rand(vocab_size, generator=generator, dtype=torch.float64).float()


def greedy(logits_NV: Tensor) -> Tensor:
    """Return each row's most likely token: tokens_N."""
    return logits_NV.argmax(-1)


def draw(logits_NV: Tensor, temperature_N: Tensor, top_p_N: Tensor, uniform_NV: Tensor) -> Tensor:
    """Draw one token per row from its tempered nucleus, by race: tokens_N; temperature must be above 0.

    Source: Gumbel 1954, "Statistical theory of extreme values"; nucleus: Holtzman et al. 2020, eq. 2.
    """
    probs_NV = (logits_NV / temperature_N[:, None]).softmax(-1)
    narrow = (top_p_N < 1).nonzero()[:, 0]
    if narrow.numel():
        probs_NV[narrow] *= nucleus(probs_NV[narrow], top_p_N[narrow])
    waits_NV = torch.log1p(-uniform_NV).neg_().clamp_min_(_TINY)
    return (probs_NV / waits_NV).argmax(-1)


def nucleus(probs_NV: Tensor, top_p_N: Tensor) -> Tensor:
    """Mark each row's smallest set of most likely tokens whose mass reaches top_p: kept_NV (bool), never empty."""
    top_NK, ids_NK = probs_NV.topk(min(_HEAD, probs_NV.shape[-1]))
    if bool((top_NK.double().sum(-1) < top_p_N).any()):
        top_NK, ids_NK = probs_NV.sort(descending=True, stable=True)
    mass_NK = top_NK.double().cumsum(-1)
    before_NK = torch.cat([torch.zeros_like(mass_NK[:, :1]), mass_NK[:, :-1]], -1)
    return torch.zeros_like(probs_NV, dtype=torch.bool).scatter_(-1, ids_NK, before_NK < top_p_N[:, None])


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Log-probability (nats) of each row's token under the unmodified distribution: logprobs_N."""
    return logits_NV.gather(-1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def top_logprobs(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k most likely tokens of each row, best first: logprobs_NK (nats, unmodified distribution) and tokens_NK."""
    top_NK, tokens_NK = logits_NV.topk(min(k, logits_NV.shape[-1]))
    return top_NK - logits_NV.logsumexp(-1, keepdim=True), tokens_NK
