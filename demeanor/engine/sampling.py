"""Logits to tokens: pure functions over a batch of rows; every random number comes in as an argument.

A draw is an exponential race (equivalent to Gumbel-max): with E ~ Exp(1) per token, argmax p/E has
distribution p. The inverse CDF is not used: a last-bit change of the logits moves every edge of a CDF and
changed 15-30 times more draws; a race changes only as many as the total variation distance demands. Shapes: N
rows, V vocabulary, K alternatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from demeanor.model.draws import Noise, draw_tokens

_HEAD = 64  # tokens tried before the vocabulary is sorted (a sort of 32 x 2048 costs 3 ms, this 0.4 ms)
_MORE = 32  # times as many are tried before a large vocabulary is sorted (32 x 128,256: sorted 320 ms, 2,048 tried 49 ms)
_TINY = 1e-30


def greedy(logits_NV: Tensor) -> Tensor:
    """Return each row's most likely token: tokens_N."""
    return logits_NV.argmax(-1)


def draw(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_p_N: Tensor,
    uniform_NV: Tensor,
    top_k_N: Tensor | None = None,
    min_p_N: Tensor | None = None,
) -> Tensor:
    """Draw one token per row by race from its tempered distribution, narrowed by top_k, top_p, min_p:
    tokens_N.

    Temperature must be at least COLDEST; top_k 0 is off. Each step renormalises what the one before left (as in
    transformers and vLLM).
    Source: Gumbel 1954, "Statistical theory of extreme values"; top_p: Holtzman et al. 2020, eq. 2; min_p:
    Nguyen et al. 2024.
    """
    return race(narrowed(logits_NV, temperature_N, top_p_N, top_k_N, min_p_N), uniform_NV)


class DrawSettings(NamedTuple):
    """How one row's token is drawn; top_k 0 is off."""

    temperature: float
    top_p: float
    min_p: float
    top_k: int


def drawn(
    logits_NV: Tensor, settings: Sequence[DrawSettings], noises: Sequence[Noise], keep: Sequence[bool]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Draw one token per row, as `draw` does: tokens_N; and by row, where `keep` says so and narrowing excluded tokens, those that were
    left, ascending."""
    settings_N4 = torch.tensor(settings)
    found = draw_tokens(logits_NV, settings_N4, noises, keep)
    if found is not None:
        return found
    temperature_N, top_p_N, min_p_N, top_k_N = settings_N4.to(logits_NV.device).unbind(1)
    probs_NV = narrowed(logits_NV, temperature_N, top_p_N, top_k_N.long(), min_p_N)
    kept = {i: probs_NV[i].nonzero()[:, 0] for i, wanted in enumerate(keep) if wanted}
    uniform_NV = torch.stack([noise.uniform(logits_NV.shape[-1]) for noise in noises]).to(logits_NV.device)
    whole = logits_NV.shape[-1]
    return race(probs_NV, uniform_NV), {i: kept_K for i, kept_K in kept.items() if len(kept_K) < whole}


def narrowed(
    logits_NV: Tensor,
    temperature_N: Tensor,
    top_p_N: Tensor,
    top_k_N: Tensor | None = None,
    min_p_N: Tensor | None = None,
) -> Tensor:
    """Return probabilities of the tempered distribution, 0 for tokens that narrowing excludes; their sum may be less
    than 1. A row's bits depend on that row only: probs_NV."""
    probs_NV = (logits_NV / temperature_N[:, None]).softmax(-1)
    if top_k_N is not None:
        short = ((top_k_N > 0) & (top_k_N < probs_NV.shape[-1])).nonzero()[:, 0]
        if short.numel():
            probs_NV[short] *= likeliest(probs_NV[short], top_k_N[short])
            # One long row alone would be summed by several threads, in another order than among others.
            probs_NV[short] /= probs_NV[[*short.tolist(), int(short[0])]].sum(-1, keepdim=True)[:-1]
    narrow = (top_p_N < 1).nonzero()[:, 0]
    if narrow.numel():
        probs_NV[narrow] *= nucleus(probs_NV[narrow], top_p_N[narrow])
    if min_p_N is not None and bool((min_p_N > 0).any()):
        probs_NV *= probs_NV >= min_p_N[:, None] * probs_NV.amax(-1, keepdim=True)
    return probs_NV


def race(probs_NV: Tensor, uniform_NV: Tensor) -> Tensor:
    """Draw one token per row from probabilities that need not sum to 1: tokens_N."""
    waits_NV = uniform_NV.neg().log1p_().neg_().clamp_min_(_TINY)
    # A token that cannot be drawn never wins, not even where the others' numbers are 0.
    return torch.div(probs_NV, waits_NV, out=waits_NV).masked_fill_(probs_NV <= 0, -1.0).argmax(-1)


def likeliest(probs_NV: Tensor, top_k_N: Tensor) -> Tensor:
    """Mark each row's top_k most likely tokens (of equal ones, the first): kept_NV (bool)."""
    last_N = probs_NV.topk(int(top_k_N.max())).values.gather(1, top_k_N[:, None] - 1)  # of the likeliest
    above_NV, equal_NV = probs_NV > last_N, probs_NV == last_N
    room_N = top_k_N[:, None] - above_NV.sum(-1, keepdim=True)
    return above_NV | (equal_NV & (equal_NV.cumsum(-1) <= room_N))


def penalise(logits_V: Tensor, counts: Mapping[int, int], presence: float, frequency: float) -> None:
    """Lower logits in place: by `presence` once and by `frequency` per earlier occurrence (OpenAI)."""
    if counts and (presence or frequency):
        ids = torch.tensor(list(counts), device=logits_V.device)
        times = torch.tensor(list(counts.values()), dtype=logits_V.dtype, device=logits_V.device)
        logits_V[ids] -= presence + frequency * times


def nucleus(probs_NV: Tensor, top_p_N: Tensor, head: int = _HEAD) -> Tensor:
    """Mark each row's smallest set of most likely tokens whose mass reaches top_p: kept_NV (bool).

    The `head` most likely ones are tried, then more, and at last the whole vocabulary is sorted.
    """
    top_NK, ids_NK = probs_NV.topk(min(head, probs_NV.shape[-1]))
    more_N = top_NK.double().sum(-1) < top_p_N
    if bool(more_N.any()) and not bool(more_N.all()):  # each row alone decides how it is sorted
        kept_NV = torch.empty_like(probs_NV, dtype=torch.bool)
        for rows in (more_N, ~more_N):
            kept_NV[rows] = nucleus(probs_NV[rows], top_p_N[rows], head)
        return kept_NV
    if bool(more_N.any()):
        if head * _MORE * 4 < probs_NV.shape[-1]:
            return nucleus(probs_NV, top_p_N, head * _MORE)
        top_NK, ids_NK = probs_NV.sort(descending=True, stable=True)
    mass_NK = top_NK.double().cumsum(-1)
    # The first is kept whatever top_p is: fp32 holds 1e-300 as 0.
    before_NK = torch.cat([torch.full_like(mass_NK[:, :1], -1.0), mass_NK[:, :-1]], -1)
    return torch.zeros_like(probs_NV, dtype=torch.bool).scatter_(-1, ids_NK, before_NK < top_p_N[:, None])


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Log-probability (nats) of each row's token under the unmodified distribution: logprobs_N."""
    return logits_NV.gather(-1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def top_logprobs(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return each row's k most likely tokens, best first: logprobs_NK (nats, before temperature) and
    tokens_NK."""
    top_NK, tokens_NK = logits_NV.topk(min(k, logits_NV.shape[-1]))
    return top_NK - logits_NV.logsumexp(-1, keepdim=True), tokens_NK
