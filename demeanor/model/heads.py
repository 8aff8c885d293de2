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

from demeanor.model import fused
from demeanor.model.drawn import Drawn, conditioned, drawn_of, entropy
from demeanor.model.hf import ForeignModel, ForeignReward
from demeanor.model.llama import Llama
from demeanor.model.reward_model import RewardModel
from demeanor.model.tensors import Outputs, TokenBatch

LARGE = (
    256 << 20
)  # bytes of logits (6 a number: bf16 and fp32 copies) above which they are chunked and recomputed

WIDE = 16384  # tokens of a vocabulary whose softmax is worth fusing


def token_logprobs(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    targets_C: Tensor,
    drawn: Drawn | None = None,
    *,
    chunk: int = 2048,
    large_bytes: int = LARGE,
    alike: bool = False,
) -> Tensor:
    """Return log-probabilities (nats, fp32) of `targets_C` under the distribution that they were drawn from.

    Beyond `large_bytes` logits are made in chunks. `alike`: the loss is expected to weigh them equally.
    """
    if drawn is None and len(hidden_CD) and _is_wide(hidden_CD, weight_VD):
        return fused.target_logprobs(hidden_CD, weight_VD, targets_C, alike=alike)
    spans = list(chunks(hidden_CD, weight_VD, chunk, large_bytes))
    parts = []
    for a, b in spans:
        given = (hidden_CD[a:b], weight_VD, targets_C[a:b], None if drawn is None else drawn.rows(a, b))
        parts.append(_logprobs(*given) if len(spans) == 1 else _recomputed(_logprobs, *given))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _is_wide(hidden_CD: Tensor, weight_VD: Tensor) -> bool:
    """Whether the vocabulary is large enough for the fused head, which runs on a CPU."""
    return (
        len(weight_VD) >= WIDE
        and weight_VD.device.type == "cpu"
        and {hidden_CD.dtype, weight_VD.dtype} == {torch.float32}
        and not hasattr(weight_VD, "to_local")
    )


@torch.no_grad()
def collision(hidden_CD: Tensor, weight_VD: Tensor, *, chunk: int = 2048, large_bytes: int = LARGE) -> Tensor:
    """Return log sum_v p(v)^2 (nats, fp32) of each predicted distribution, without gradient."""
    parts = []
    for a, b in chunks(hidden_CD, weight_VD, chunk, large_bytes):
        logits_CV = F.linear(hidden_CD[a:b], weight_VD).float()
        parts.append((2 * logits_CV).logsumexp(-1) - 2 * logits_CV.logsumexp(-1))
    return torch.cat(parts)


@torch.no_grad()
def token_entropy(
    hidden_CD: Tensor, weight_VD: Tensor, drawn: Drawn | None = None, *, large_bytes: int = LARGE
) -> Tensor:
    """Return the entropy (nats, fp32) of each distribution that a target was drawn from, without gradient."""
    return torch.cat(
        [
            entropy(conditioned(F.linear(hidden_CD[a:b], weight_VD).float(), drawn and drawn.rows(a, b)))
            for a, b in chunks(hidden_CD, weight_VD, 2048, large_bytes)
        ]
    )


def chunks(
    hidden_CD: Tensor, weight_VD: Tensor, chunk: int = 2048, large_bytes: int = LARGE
) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose logits fit in memory together."""
    count, vocabulary = len(hidden_CD), len(weight_VD)
    if count * vocabulary * 6 <= large_bytes:
        yield 0, count
        return
    size = min(chunk, max(1, large_bytes // (6 * vocabulary)))
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _recomputed(function: Callable[..., Tensor], *arguments: object) -> Tensor:
    """Call a function whose intermediate tensors are recomputed in the backward pass."""
    found = checkpoint(function, *arguments, use_reentrant=False)
    assert isinstance(found, Tensor)
    return found


def _logprobs(hidden_CD: Tensor, weight_VD: Tensor, targets_C: Tensor, drawn: Drawn | None) -> Tensor:
    logits_CV = F.linear(hidden_CD, weight_VD)
    wide_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    return -F.cross_entropy(conditioned(wide_CV, drawn), targets_C, reduction="none")


def policy_outputs(model: nn.Module, batch: TokenBatch, *, statistics: Collection[str] = ()) -> Outputs:
    """Return the policy's log-probabilities (nats) of every scored token, under the distribution that it was drawn
    from; `statistics` may include `collision` (of the whole distribution) and `entropy`."""
    if isinstance(model, ForeignModel):
        return model.outputs(batch, statistics=statistics)
    assert isinstance(model, Llama), f"wanted a policy, got {type(model).__name__}"
    drawn = drawn_of(batch)
    hidden_CD = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
    return Outputs(
        logprobs_C=token_logprobs(
            hidden_CD, model.head(), batch.targets_C, drawn, alike=_weighed_alike(batch)
        ),
        collision_C=collision(hidden_CD, model.head()) if "collision" in statistics else None,
        entropy_C=token_entropy(hidden_CD, model.head(), drawn) if "entropy" in statistics else None,
    )


def _weighed_alike(batch: TokenBatch) -> bool:
    """Whether the loss is probably a mean over tokens: one completion a prompt, no reference and no advantage."""
    alone = batch.num_branches == 0 or batch.num_branches == int(batch.tree_B.max()) + 1
    return alone and batch.reference_C is None and batch.advantage_C is None and batch.label_B is None


def reward_outputs(model: nn.Module, batch: TokenBatch) -> Outputs:
    """Return one reward per branch, rewards_B."""
    assert isinstance(model, RewardModel | ForeignReward), (
        f"wanted a reward model, got {type(model).__name__}"
    )
    return Outputs(rewards_B=model.rewards(batch))
