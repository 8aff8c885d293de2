"""Outputs of a model for a batch: log-probabilities (nats) of the scored tokens, or rewards.

In: a policy or reward model and a batch of token trees. Out: Outputs. Logits are computed at scored positions
only, and in chunks where they would be large.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from demeanor.model.hf import ForeignModel, ForeignReward
from demeanor.model.llama import Llama
from demeanor.model.reward_model import RewardModel
from demeanor.model.tensors import Outputs, TokenBatch

LARGE = (
    256 << 20
)  # bytes of logits (6 a number: bf16 and fp32 copies) above which they are chunked and recomputed


def token_logprobs(
    hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, *, chunk: int = 2048, large_bytes: int = LARGE
) -> Tensor:
    """Return log-probabilities (nats, fp32) of `targets_C`; beyond `large_bytes` logits are made in
    chunks."""
    parts = [
        _logprobs(h, weight_VD, t) if whole else _recomputed(_logprobs, h, weight_VD, t)
        for whole, h, t in _chunks(hidden_CD, weight_VD, targets_C, chunk, large_bytes)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


@torch.no_grad()
def collision(hidden_CD: Tensor, weight_VD: Tensor, *, chunk: int = 2048, large_bytes: int = LARGE) -> Tensor:
    """Return log sum_v p(v)^2 (nats, fp32) of each predicted distribution, without gradient."""
    parts = []
    for _, h, _ in _chunks(hidden_CD, weight_VD, hidden_CD.new_zeros(len(hidden_CD)), chunk, large_bytes):
        logits_CV = F.linear(h, weight_VD).float()
        parts.append((2 * logits_CV).logsumexp(-1) - 2 * logits_CV.logsumexp(-1))
    return torch.cat(parts)


def _chunks(
    hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, chunk: int, large_bytes: int
) -> Iterator[tuple[bool, Tensor, Tensor]]:
    """Yield rows whose logits fit in memory together, and whether these are all rows."""
    vocabulary = weight_VD.shape[0]
    if hidden_CD.shape[0] * vocabulary * 6 <= large_bytes:
        yield True, hidden_CD, targets_C
        return
    size = min(chunk, max(1, large_bytes // (6 * vocabulary)))
    for h, t in zip(torch.split(hidden_CD, size), torch.split(targets_C, size)):
        yield False, h, t


def _recomputed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """Call a function whose intermediate tensors are recomputed in the backward pass."""
    found = checkpoint(function, *arguments, use_reentrant=False)
    assert isinstance(found, Tensor)
    return found


def _logprobs(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor) -> Tensor:
    logits_CV = F.linear(hidden_CD, weight_VD)
    wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return -F.cross_entropy(wide_CV, targets_C, reduction="none")


def policy_outputs(model: nn.Module, batch: TokenBatch, *, statistics: Collection[str] = ()) -> Outputs:
    """Return the policy's log-probabilities (nats) of every scored token; `statistics` may include
    `collision`."""
    with_collision = "collision" in statistics
    if isinstance(model, ForeignModel):
        return model.outputs(batch, with_collision=with_collision)
    assert isinstance(model, Llama), f"wanted a policy, got {type(model).__name__}"
    hidden_CD = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
    return Outputs(
        logprobs_C=token_logprobs(hidden_CD, model.head(), batch.targets_C),
        collision_C=collision(hidden_CD, model.head()) if with_collision else None,
    )


def reward_outputs(model: nn.Module, batch: TokenBatch) -> Outputs:
    """Return one reward per branch, rewards_B."""
    assert isinstance(model, RewardModel | ForeignReward), (
        f"wanted a reward model, got {type(model).__name__}"
    )
    return Outputs(rewards_B=model.rewards(batch))
