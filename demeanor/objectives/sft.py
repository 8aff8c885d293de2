"""Supervised fine-tuning: the negative log-likelihood of trained tokens; on plain text it is pretraining.

Source: Radford et al. 2018, section 3.1; response-only as in Ouyang et al. 2022 (2203.02155), section 3.5.
Page: docs/objectives/sft.md
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
    """Sum of -log p over trained tokens (nats); the count is the number of those tokens."""
    assert outputs.logprobs_C is not None
    nll_C = -outputs.logprobs_C
    count = nll_C.new_tensor(float(nll_C.numel()))
    return Loss(nll_C.sum(), count, {})
