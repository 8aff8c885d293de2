"""Direct preference optimisation, with label smoothing (cDPO) and an optional likelihood term (RPO).

Source: Rafailov et al. 2023 (2305.18290), equation 7; label smoothing: Mitchell 2023 (cDPO note), equation 3; likelihood term:
Pang et al. 2024 (2404.19733, iterative RPO), equation 1.
Page: docs/objectives/dpo.md
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor import registry
from demeanor.tensors import Loss, Outputs, TokenBatch, branch_sums, preference_pairs

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of DPO."""

    beta: float = Field(0.1, gt=0, description="pull to the reference (inverse temperature of the implicit reward)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is flipped")
    nll: float | None = Field(None, gt=0, description="weight of the chosen completion's mean negative log-likelihood; null: off")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -(1-e) log sigma(beta h) - e log sigma(-beta h), h the gap of log-ratios (nats).

    With `nll`, a pair also costs nll * -log p(chosen) / length.

    Metrics (TRL's names): rewards/chosen, rewards/rejected, rewards/accuracies, rewards/margins, logps/chosen, logps/rejected.
    """
    assert outputs.logprobs_C is not None
    assert batch.reference_C is not None
    policy_B = branch_sums(outputs.logprobs_C, batch)
    ratio_B = branch_sums(outputs.logprobs_C - batch.reference_C.to(outputs.logprobs_C.dtype), batch)
    chosen_P, rejected_P, tree_P = preference_pairs(batch)
    scaled_P = spec.beta * (ratio_B[chosen_P] - ratio_B[rejected_P])
    each_P = -(1 - spec.label_smoothing) * logsigmoid(scaled_P) - spec.label_smoothing * logsigmoid(-scaled_P)
    if spec.nll is not None:
        lengths_B = branch_sums(torch.ones_like(outputs.logprobs_C), batch)
        each_P = each_P - spec.nll * (policy_B / lengths_B)[chosen_P]
    num_trees = int(batch.tree_B.max()) + 1 if batch.tree_B.numel() else 0
    pairs_N = scaled_P.new_zeros(num_trees).index_add(0, tree_P, scaled_P.new_ones(len(tree_P)))
    total = (each_P / pairs_N[tree_P]).sum()
    count = scaled_P.new_tensor(float(len(scaled_P)))
    reward_B, policy_B, scaled_P = spec.beta * ratio_B.detach(), policy_B.detach(), scaled_P.detach()
    return Loss(total, (pairs_N > 0).sum().to(total.dtype), {
        "rewards/chosen": (reward_B[chosen_P].sum(), count), "rewards/rejected": (reward_B[rejected_P].sum(), count),
        "rewards/accuracies": ((scaled_P > 0).to(scaled_P.dtype).sum(), count), "rewards/margins": (scaled_P.sum(), count),
        "logps/chosen": (policy_B[chosen_P].sum(), count), "logps/rejected": (policy_B[rejected_P].sum(), count),
    })
