"""Reward modelling: Bradley-Terry over all pairs of a prompt's ranked completions.

In: one reward per completion. Out: a sum over prompts. Page: docs/objectives.md.
"""

from __future__ import annotations

from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch, preference_pairs
from demeanor.objectives import Objective, per_prompt


class RewardSpec(registry.Spec):
    """Settings of reward."""

    center: float | None = Field(
        None, gt=0, description="weight of (r_w + r_l)^2, which keeps rewards near zero; null: off"
    )


def reward(spec: RewardSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean pair loss; the count is the number of prompts with a pair.

    Metrics: accuracy (pairs ordered correctly), margin (r_w - r_l), mean_reward (over completions).
    """
    assert outputs.rewards_B is not None
    chosen_P, rejected_P, tree_P = preference_pairs(batch)
    rewards_B = outputs.rewards_B
    gap_P = rewards_B[chosen_P] - rewards_B[rejected_P]
    wanted_P = gap_P if batch.margin_N is None else gap_P - batch.margin_N[tree_P].nan_to_num(0.0)
    each_P = -logsigmoid(wanted_P)
    if spec.center is not None:
        each_P = each_P + spec.center * (rewards_B[chosen_P] + rewards_B[rejected_P]).square()
    total, prompts = per_prompt(each_P, tree_P, batch)
    pairs = gap_P.new_tensor(float(len(gap_P)))
    gap_P, seen_B = gap_P.detach(), rewards_B.detach()
    return Loss(
        total,
        prompts,
        {
            "accuracy": ((gap_P > 0).to(gap_P.dtype).sum(), pairs),
            "margin": (gap_P.sum(), pairs),
            "mean_reward": (seen_B.sum(), seen_B.new_tensor(float(len(seen_B)))),
        },
    )


ENTRIES = {
    "reward": Objective(
        RewardSpec,
        reward,
        source="Ouyang et al. 2022 (2203.02155), equation 1: -1/C(K,2) sum log sigma(r_w - r_l); "
        "margin: Touvron et al. 2023 (2307.09288), equation 2; "
        "centring: Eisenstein et al. 2023 (2312.09244), equation 2",
        READS="rewards",
        POLICY=False,
    )
}
