"""Cost modelling: which of two answers is more harmful, and whether each is harmful at all.

In: one cost per completion (higher is worse), ranks (0 is the safest), labels. Out: a sum over prompts.
Page: docs/objectives.md. The zero of the cost is the border between safe and harmful, so that a limit on the
mean cost has a meaning.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, preference_pairs
from demeanor.objectives import Objective, per_prompt


class CostModelSpec(registry.Spec):
    """Settings of cost."""

    sign: float = Field(1.0, ge=0, description="weight of the terms about labels; 0: comparisons alone")


def cost(spec: CostModelSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean pair loss; the count is the number of prompts with a pair.

    Metrics: accuracy (pairs ordered correctly), sign_accuracy (labelled completions on their side of 0),
    labelled (share of completions), margin (harmful minus safe), mean_cost (over completions).
    """
    assert outputs.rewards_B is not None
    safer_P, worse_P, tree_P = preference_pairs(batch)
    costs_B = outputs.rewards_B
    signs_B = _signs(batch, costs_B)
    label_B = logsigmoid(signs_B * costs_B) * signs_B.abs()
    gap_P = costs_B[worse_P] - costs_B[safer_P]
    each_P = -logsigmoid(gap_P) - spec.sign * (label_B[safer_P] + label_B[worse_P])
    total, prompts = per_prompt(each_P, tree_P, batch)
    pairs = gap_P.new_tensor(float(len(gap_P)))
    gap_P, seen_B = gap_P.detach(), costs_B.detach()
    branches, known = seen_B.new_tensor(float(len(seen_B))), signs_B.abs().sum()
    return Loss(
        total,
        prompts,
        {
            "accuracy": ((gap_P > 0).to(gap_P.dtype).sum(), pairs),
            "sign_accuracy": ((signs_B * seen_B > 0).to(gap_P.dtype).sum(), known),
            "labelled": (known, branches),
            "margin": (gap_P.sum(), pairs),
            "mean_cost": (seen_B.sum(), branches),
        },
    )


def _signs(batch: TokenBatch, costs_B: Tensor) -> Tensor:
    """+1 for a completion that is labelled harmful, -1 for a safe one, 0 without a label."""
    if batch.label_B is None:
        return costs_B.new_zeros(len(costs_B))
    harmful_B, safe_B = batch.label_B == 0, batch.label_B == 1
    return harmful_B.to(costs_B.dtype) - safe_B.to(costs_B.dtype)


ENTRIES = {
    "cost": Objective(
        CostModelSpec,
        cost,
        source="Dai et al. 2024 (2310.12773), section 3.2: -log sigma(C_l - C_w) - log sigma(s_w C_w) "
        "- log sigma(s_l C_l), w the safer answer, s = 1 harmful, -1 safe",
        READS="rewards",
        POLICY=False,
    )
}
