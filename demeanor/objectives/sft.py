"""Imitation of trained tokens: sft (supervised fine-tuning, or pretraining on plain text) and dft.

In: log-probabilities (nats) of the trained tokens. Out: a sum over those tokens. Page: docs/objectives.md.
"""

from __future__ import annotations

from demeanor.core import registry
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import Objective


class NoSettings(registry.Spec):
    """No settings."""


def sft(spec: NoSettings, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum of -log p over trained tokens (nats); the count is the number of those tokens."""
    assert outputs.logprobs_C is not None
    nll_C = -outputs.logprobs_C
    count = nll_C.new_tensor(float(nll_C.numel()))
    return Loss(nll_C.sum(), count, {})


def dft(spec: NoSettings, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum of -p log p over trained tokens, p without gradient; the count is their number. Metrics: nll
    (nats)."""
    assert outputs.logprobs_C is not None
    seen_C = outputs.logprobs_C.detach()
    total = -(seen_C.exp() * outputs.logprobs_C).sum()
    count = total.new_tensor(float(seen_C.numel()))
    return Loss(total, count, {"nll": (-seen_C.sum(), count)})


ENTRIES = {
    "sft": Objective(
        NoSettings,
        sft,
        source="Radford et al. 2018, section 3.1; responses only: Ouyang et al. 2022 (2203.02155), 3.5",
        ROWS="examples",
    ),
    "dft": Objective(NoSettings, dft, source="Wu et al. 2025 (2508.05629), equation 9", ROWS="examples"),
}
