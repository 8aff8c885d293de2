"""Compiled regions against the same layers as they are: log-probs and gradients."""

from __future__ import annotations

import pytest
import torch

from demeanor.core import hardware
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model import checkpoints
from demeanor.model.heads import policy_outputs
from demeanor.stack.schema import ModelShape

pytestmark = pytest.mark.skipif(hardware.compiler() is None, reason="no C++ compiler on this machine")


def test_compiled_layers_compute_what_the_layers_compute() -> None:
    trees = [
        Tree((1, 2, 3), (Branch((4, 5), (True, True)), Branch((6,), (True,))), (0, 1)),
        Tree((7,), (Branch((8, 9, 10), (True,) * 3),)),
    ]
    found = []
    for compiled in (False, True):
        model = checkpoints.create(ModelShape(layers=2, width=32, heads=2, context=32), 300, 0)
        if compiled:
            model.compile_layers()
        for batch in (collate(trees), collate(trees[:1])):  # another length must not need another compilation
            logprobs = policy_outputs(model, batch).logprobs_C
            assert logprobs is not None
            logprobs.sum().backward()
            found.append(
                [logprobs.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
            )
    for wanted, got in zip(found[:2], found[2:]):
        for a, b in zip(wanted, got):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
