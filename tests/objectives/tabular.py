"""Autoregressive policies small enough to enumerate, and exact expectations of gradients through the real losses.

A policy over V tokens and T steps is a table of logits, a row for each prefix. All V^T completions are the branches of one
tree, so a loss sees them all; its slope in each completion's log-probabilities, weighted by the completion's probability,
is the exact expectation of the slope of a sampled completion.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import Advantages, Objective, Samples


def objective(kind: str) -> Objective:
    """One objective of the package."""
    found = registry.entry("demeanor.objectives", kind)
    assert isinstance(found, Objective)
    return found


class Space(NamedTuple):
    """All completions of T tokens out of V: tokens_BT, and for each of them the row of its prefix in a table."""

    tokens_BT: Tensor
    rows_BT: Tensor

    def logprobs(self, logits_KV: Tensor) -> Tensor:
        """Log-probabilities of all completions' tokens, in order (C)."""
        return logits_KV.log_softmax(-1)[self.rows_BT, self.tokens_BT].reshape(-1)

    def sequence_logprobs(self, logits_KV: Tensor) -> Tensor:
        """Log-probabilities of all completions (B)."""
        return self.logprobs(logits_KV).reshape(self.tokens_BT.shape).sum(1)


def space(vocabulary: int = 4, steps: int = 4) -> Space:
    """Every completion of `steps` tokens."""
    tokens = torch.tensor(list(product(range(vocabulary), repeat=steps)))
    rows, place, first = [], torch.zeros(len(tokens), dtype=torch.int64), 0
    for t in range(steps):
        rows.append(first + place)
        first += vocabulary**t
        place = place * vocabulary + tokens[:, t]
    return Space(tokens, torch.stack(rows, 1))


def table(generator: torch.Generator, vocabulary: int = 4, steps: int = 4, deviation: float = 1.0) -> Tensor:
    """Logits of a random policy: independent normals."""
    rows = sum(vocabulary**t for t in range(steps))
    return deviation * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)


@cache
def completions_batch(groups: tuple[tuple[int, ...], ...]) -> TokenBatch:
    """One tree a group, with completions of these lengths."""
    return collate(
        [
            Tree((1, 2), tuple(Branch((3,) * n, (True,) * n) for n in group), tuple(range(len(group))))
            for group in groups
        ]
    )


def samples(
    batch: TokenBatch,
    reward_B: Tensor,
    sampled_C: Tensor,
    reference_C: Tensor | None = None,
    *,
    value_C: Tensor | None = None,
    beta: float = 0.0,
) -> Samples:
    """What an objective's advantages are computed from."""
    return Samples(reward_B, batch.tree_B, batch.branch_C, sampled_C, reference_C, value_C, beta)


def iteration(
    kind: str,
    spec: Any,
    batch: TokenBatch,
    reward_B: Tensor,
    sampled_C: Tensor,
    reference_C: Tensor | None = None,
    value_C: Tensor | None = None,
) -> tuple[TokenBatch, Advantages]:
    """A batch with all columns that the objective trains on, as the loop fills them."""
    online = objective(kind).ONLINE
    assert online is not None
    drawn = samples(batch, reward_B, sampled_C, reference_C, value_C=value_C, beta=online.beta(spec))
    found = online.advantages(spec, drawn)
    return (
        batch._replace(
            sampled_C=sampled_C,
            reference_C=reference_C,
            advantage_C=found.advantage_C,
            value_C=value_C,
            return_C=found.return_C,
        ),
        found,
    )


def slope(
    kind: str, spec: Any, batch: TokenBatch, logprobs_C: Tensor, values_C: Tensor | None = None
) -> tuple[Loss, Tensor]:
    """The loss of a batch, and its slope in each log-probability."""
    leaf = logprobs_C.detach().clone().requires_grad_()
    loss = objective(kind).loss(spec, Outputs(logprobs_C=leaf, values_C=values_C), batch)
    (found,) = torch.autograd.grad(loss.total, leaf)
    return loss, found


def expected_gradient(
    kind: str,
    spec: Any,
    where: Space,
    logits_KV: Tensor,
    reference_KV: Tensor,
    reward_B: Tensor | None = None,
) -> Tensor:
    """Exact expectation over completions of the gradient of one completion's summed loss, on policy.

    Only for advantages of a completion that do not depend on others: ppo, or a KL in the loss.
    """
    number, steps = where.tokens_BT.shape
    batch = completions_batch(((steps,) * number,))
    table_KV = logits_KV.clone().requires_grad_()
    logprobs_C, reference_C = where.logprobs(table_KV), where.logprobs(reference_KV)
    nothing_C = torch.zeros_like(reference_C)
    reward_B = reward_B if reward_B is not None else torch.zeros(number, dtype=torch.float64)
    filled, _ = iteration(kind, spec, batch, reward_B, logprobs_C.detach(), reference_C, nothing_C)
    _, slope_C = slope(kind, spec, filled, logprobs_C, nothing_C)
    weight_C = where.sequence_logprobs(logits_KV).exp()[batch.branch_C]
    (found,) = torch.autograd.grad(logprobs_C, table_KV, slope_C * weight_C)
    return found


def kl_gradient(where: Space, logits_KV: Tensor, reference_KV: Tensor) -> Tensor:
    """Gradient of KL(pi||ref) of whole completions, by enumeration."""
    table_KV = logits_KV.clone().requires_grad_()
    policy_B, reference_B = where.sequence_logprobs(table_KV), where.sequence_logprobs(reference_KV)
    (found,) = torch.autograd.grad((policy_B.exp() * (policy_B - reference_B)).sum(), table_KV)
    return found
