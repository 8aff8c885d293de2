"""Policies and reward models that are one table: every answer is one token, and every expectation is a finite sum.

In: logits or rewards of the arms. Out: `TokenBatch` and `Outputs` as the trainer builds them, so that the losses of demeanor/objectives run
unchanged, and a minimiser that goes to the bottom. The closed forms beside them (tilt, J) are what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from demeanor.model.tensors import Loss, Outputs, TokenBatch

NONE = torch.zeros(0, dtype=torch.long)


def pairs(chosen_P: Sequence[int] | Tensor, rejected_P: Sequence[int] | Tensor) -> TokenBatch:
    """One tree for each comparison: the chosen arm, then the rejected one, each of one token."""
    arms = torch.stack([torch.as_tensor(chosen_P), torch.as_tensor(rejected_P)], dim=1).reshape(-1)
    return flat(arms, torch.arange(len(arms)) // 2, torch.arange(len(arms)) % 2)


def flat(targets_C: Tensor, tree_B: Tensor, rank_B: Tensor, branch_C: Tensor | None = None) -> TokenBatch:
    """A batch without a model: one token a branch unless `branch_C` says otherwise."""
    return TokenBatch(
        tokens_T=NONE,
        positions_T=NONE,
        segments=(),
        scored_C=torch.arange(len(targets_C)),
        targets_C=targets_C,
        branch_C=torch.arange(len(targets_C)) if branch_C is None else branch_C,
        last_B=torch.arange(len(tree_B)),
        tree_B=tree_B,
        rank_B=rank_B,
    )


LossOf = Callable[[TokenBatch], Loss]


def counted(loss_of: LossOf, chosen_P: Tensor, rejected_P: Tensor, count_P: Tensor) -> Tensor:
    """The summed loss of comparisons that occur `count_P` times: a call for each binary digit of the counts."""
    total = torch.zeros((), dtype=torch.float64)
    for bit in range(int(count_P.max()).bit_length()):
        has = (count_P >> bit) & 1 == 1
        if has.any():
            total = total + (1 << bit) * loss_of(pairs(chosen_P[has], rejected_P[has])).total
    return total


def policy_loss(objective: Any, spec: Any, logprobs_A: Tensor, reference_A: Tensor | None = None) -> LossOf:
    """The loss of an objective at a policy (log-probabilities of all arms) and its reference."""

    def loss(batch: TokenBatch) -> Loss:
        if reference_A is not None:
            batch = batch._replace(reference_C=reference_A[batch.targets_C])
        return objective.loss(spec, Outputs(logprobs_C=logprobs_A[batch.targets_C]), batch)

    return loss


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, *, steps: int = 200) -> Tensor:
    """The argument at which a smooth function is least: L-BFGS with a strong Wolfe line search, in double precision."""
    at = start.detach().clone().double().requires_grad_()
    search = torch.optim.LBFGS(
        [at],
        max_iter=steps,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(at)
        value.backward()
        return value

    search.step(closure)
    return at.detach()


# ---- closed forms ----


def tilt(reference_A: Tensor, reward_A: Tensor, beta: float) -> Tensor:
    """Log-probabilities of the optimum of E r - beta KL: log ref + r / beta - log Z (Rafailov et al. 2023, equation 4)."""
    return (reference_A + reward_A / beta).log_softmax(-1)


def kl(policy_A: Tensor, reference_A: Tensor) -> float:
    """KL(policy || reference) in nats, of log-probabilities; the sum over all rows of a table."""
    return float((policy_A.exp() * (policy_A - reference_A)).sum())


def regularised(policy_A: Tensor, reference_A: Tensor, reward_A: Tensor, beta: float) -> float:
    """J = E r - beta KL."""
    return float((policy_A.exp() * reward_A).sum()) - beta * kl(policy_A, reference_A)
