"""Dynamic fine-tuning: each trained token's loss is weighted by the model's own probability of it.

Source: Wu et al. 2025 (2508.05629), equation 9.
Page: docs/objectives/dft.md
"""

from __future__ import annotations

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch

ROWS = "examples"
READS = "logprobs"
ROLES: tuple[str, ...] = ()
POLICY = True


class Spec(registry.Spec):
    """Nothing to set."""


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum of -p log p over trained tokens, p without gradient; the count is the number of those tokens. Metrics: nll (nats)."""
    assert outputs.logprobs_C is not None
    seen_C = outputs.logprobs_C.detach()
    total = -(seen_C.exp() * outputs.logprobs_C).sum()
    count = total.new_tensor(float(seen_C.numel()))
    return Loss(total, count, {"nll": (-seen_C.sum(), count)})
