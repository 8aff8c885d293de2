"""The learning rate against its closed forms; which weights decay; Muon's update against its definition."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from demeanor.core import hardware
from demeanor.stack.schema import Optim
from demeanor.training.optimizer import Muon, MuonFp32, adamw, learning_rate, optimizer
from tests.conftest import each


def curve(**settings: object) -> list[float]:
    return [learning_rate(Optim(lr=2.0, **settings), step, 100) for step in range(100)]


def test_the_warm_up_climbs_linearly_from_zero_to_the_peak() -> None:
    rates = curve(warmup=0.1, schedule="constant")
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10:] == [2.0] * 90


def test_the_cosine_passes_its_known_points_and_ends_at_the_final_rate() -> None:
    rates = curve(warmup=0.1, schedule="cosine", final_lr=0.1)
    assert rates[9] == 2.0
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 / 2))  # half way: 45 of 90 steps
    assert rates[39] == pytest.approx(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2))
    assert rates[99] == pytest.approx(0.2)


def test_the_line_falls_by_the_same_amount_each_step_and_ends_at_the_final_rate() -> None:
    rates = curve(warmup=0.0, schedule="linear", final_lr=0.5)
    assert [a - b for a, b in itertools.pairwise(rates)] == pytest.approx([0.01] * 99)
    assert rates[99] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_every_rate_is_positive_and_at_most_the_peak_and_never_climbs_after_the_warm_up(
    schedule: str, warmup: float, steps: int
) -> None:
    optim = Optim(lr=2.0, warmup=warmup, schedule=schedule)
    rates = [learning_rate(optim, step, steps) for step in range(steps)]
    assert len(rates) == steps
    assert all(0 < rate <= 2.0 for rate in rates)
    after = rates[max(0, round(warmup * steps) - 1) :]
    assert all(a >= b for a, b in itertools.pairwise(after))


def test_only_matrices_decay_and_frozen_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    optimizer = adamw(model, Optim(lr=0.5, weight_decay=0.1))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(
        after["0.weight"], before["0.weight"] * (1 - 0.5 * 0.1)
    )  # a zero gradient leaves only the decay
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(after[name], before[name])


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens, self.up, self.down, self.norm = (
            nn.Embedding(9, 6),
            nn.Linear(6, 24, bias=False),
            nn.Linear(24, 6),
            nn.LayerNorm(6),
        )


def moved(model: nn.Module, optim: Optim) -> dict[str, torch.Tensor]:
    """How far each weight goes in one step on a random gradient."""
    draw = torch.Generator().manual_seed(1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)
    optimizer(model, optim).step()
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def test_muon_moves_every_direction_of_a_hidden_matrix_about_equally_far() -> None:
    """An orthogonal update times 0.2 sqrt(longer side): all singular values alike (Newton-Schulz leaves them in 0.7 to 1.2)."""
    steps = moved(Layered(), Optim(kind="muon", lr=0.01))
    for name in ("up.weight", "down.weight"):
        singular = torch.linalg.svdvals(steps[name]) / (0.01 * 0.2 * 24**0.5)
        assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.3
    plain = torch.linalg.svdvals(moved(Layered(), Optim(lr=0.01))["up.weight"])
    assert (
        float(plain.max() / plain.min()) > 1.5
    )  # AdamW's first step is a matrix of signs: far from orthogonal


def test_under_muon_embeddings_and_vectors_move_as_under_adamw() -> None:
    muon, adam = moved(Layered(), Optim(kind="muon", lr=0.01)), moved(Layered(), Optim(kind="adamw", lr=0.01))
    for name in ("embed_tokens.weight", "down.bias", "norm.weight", "norm.bias"):
        torch.testing.assert_close(muon[name], adam[name])


def test_a_schedule_reaches_every_part_of_muon() -> None:
    model = Layered()
    still = optimizer(model, Optim(kind="muon", lr=0.01))
    before = [p.clone() for p in model.parameters()]
    for group in still.param_groups:
        group["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    still.step()
    assert all(torch.equal(a, b) for a, b in zip(each(before), model.parameters(), strict=True))


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)])
def test_muon_in_fp32_is_torchs_up_to_the_rounding_of_bf16(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    found = []
    for kind in (torch.optim.Muon, MuonFp32):
        weight = nn.Parameter(start.clone())
        stepper = kind([weight], lr=0.01, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            weight.grad = gradient.clone()
            stepper.step()
        found.append(weight.detach() - start)
    torch_moved, ours_moved = found
    assert (torch_moved - ours_moved).norm() < 0.02 * torch_moved.norm()  # bf16 has 8 bits
    assert not torch.equal(torch_moved, ours_moved)


def test_muon_is_torchs_own_where_bf16_products_are_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    for dtype in (torch.bfloat16, None):
        monkeypatch.setattr(hardware, "training_dtype", lambda shapes, dtype=dtype: dtype)
        made = optimizer(Layered(), Optim(kind="muon", lr=0.01))
        assert isinstance(made, Muon)
        kinds.append(type(made._parts[0]))
    assert kinds == [torch.optim.Muon, MuonFp32]
