"""Length-normalised DPO: log-ratios per token (Tulu 3).

Source: Lambert et al. 2024 (2411.15124), equation 6.
Page: docs/objectives/ln_dpo.md
"""

from __future__ import annotations

from pydantic import Field
from torch.nn.functional import logsigmoid

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives._pairs import gap, judged

ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
    """Settings of ln_dpo."""

    beta: float = Field(5.0, gt=0, description="scale of the log-ratios per token; Tulu 3 uses 5")


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over prompts of the mean over pairs of -log sigma(beta (mean log-ratio of chosen - of rejected)).

    Metrics: TRL's (rewards/*, logps/*).
    """
    found = gap(outputs, batch)
    reward_B = spec.beta * found.mean_ratio_B
    return judged(-logsigmoid(reward_B[found.chosen_P] - reward_B[found.rejected_P]), found, batch, reward_B)
