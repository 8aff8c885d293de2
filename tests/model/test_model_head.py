"""Log-probabilities of chosen tokens against a plain log-softmax."""

from __future__ import annotations

import pytest
import torch

from demeanor.model import heads
from demeanor.model.heads import token_logprobs


@pytest.mark.parametrize("large_bytes", [heads.LARGE, 17 * 6 * 5, 1], ids=["at once", "five rows", "one row"])
def test_chunks_change_neither_values_nor_gradients(large_bytes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(n, 8, generator=generator, dtype=torch.float64, requires_grad=True) for n in (23, 17)
    )
    targets = torch.randint(17, (23,), generator=generator)
    wanted = (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    expected = torch.autograd.grad(wanted.sum(), (hidden, weight))
    found = token_logprobs(hidden, weight, targets, large_bytes=large_bytes)
    assert torch.allclose(found, wanted, atol=1e-12)
    for x, y in zip(torch.autograd.grad(found.sum(), (hidden, weight)), expected):
        assert torch.allclose(x, y, atol=1e-12)


def test_the_softmax_is_fp32_under_bf16_autocast_and_nothing_scored_is_fine() -> None:
    hidden, weight = torch.randn(4, 8), torch.randn(17, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert token_logprobs(hidden, weight, torch.arange(4)).dtype == torch.float32
    assert token_logprobs(hidden[:0], weight, torch.arange(0)).shape == (0,)


@pytest.mark.parametrize("large_bytes", [heads.LARGE, 17 * 6 * 5], ids=["at once", "five rows"])
def test_collision_is_the_log_of_summed_squared_probabilities(large_bytes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator, requires_grad=True) for n in (23, 17))
    found = heads.collision(hidden, weight, large_bytes=large_bytes)
    assert torch.allclose(found, (hidden @ weight.T).softmax(-1).square().sum(-1).log(), atol=1e-6)
    assert not found.requires_grad


def test_a_uniform_prediction_collides_with_one_in_v() -> None:
    assert torch.allclose(
        heads.collision(torch.zeros(3, 8), torch.randn(17, 8)),
        torch.full((3,), -float(torch.tensor(17.0).log())),
    )
