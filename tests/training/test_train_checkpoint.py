"""One file holds everything a run needs; it is whole or it is the one before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tiny_training import OPTIM
from torch import nn

from demeanor.core.errors import CheckpointError
from demeanor.training import resume
from demeanor.training.optimizer import adamw


class Tied(nn.Module):
    """An embedding that is also the head, a frozen part, a counter that is state and a table that is not."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("seen", torch.tensor(seed))
        self.register_buffer("table", torch.arange(4.0).expand(2, 4), persistent=False)


def stepped(model: Tied, steps: int) -> torch.optim.AdamW:
    optimizer = adamw(model, OPTIM)
    for _ in range(steps):
        optimizer.zero_grad()
        model.head(model.embedding.weight).square().sum().backward()
        optimizer.step()
    return optimizer


def test_everything_comes_back_into_another_model_and_optimiser(tmp_path: Path) -> None:
    first, path = Tied(1), tmp_path / "deep" / "checkpoint.safetensors"
    optimizer = stepped(first, 3)
    resume.save(path, first, optimizer, 3, {"steps": 9})
    drawn = torch.rand(4)
    second = Tied(2)
    fresh = adamw(second, OPTIM)
    assert resume.load(path, second, fresh, {"steps": 9}) == 3
    assert torch.equal(torch.rand(4), drawn)
    for name, value in first.state_dict().items():  # what is frozen is its parent's and not stored
        assert torch.equal(
            second.state_dict()[name], Tied(2).state_dict()[name] if name.startswith("frozen") else value
        ), name
    for key, value in optimizer.state[first.embedding.weight].items():
        assert torch.equal(fresh.state[second.embedding.weight][key], value), key
    assert second.head.weight is second.embedding.weight


def test_a_shared_weight_is_stored_once_and_a_frozen_one_not_at_all(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "checkpoint.safetensors"
    resume.save(path, model, stepped(model, 1), 1, {})
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    moments = {f"optimizer.embedding.weight.{key}" for key in ("step", "exp_avg", "exp_avg_sq")}
    assert names == {"model.embedding.weight", "model.seen", "rng", *moments}


def test_no_file_means_step_zero_and_an_untouched_model(tmp_path: Path) -> None:
    model = Tied()
    before = model.embedding.weight.clone()
    assert resume.load(tmp_path / "none.safetensors", model, adamw(model, OPTIM), {}) == 0
    assert torch.equal(model.embedding.weight, before)


def test_a_torn_temporary_file_is_ignored_and_replaced(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "checkpoint.safetensors"
    optimizer = stepped(model, 1)
    resume.save(path, model, optimizer, 1, {})
    (tmp_path / "checkpoint.safetensors.part").write_bytes(b"torn")
    assert resume.load(path, model, optimizer, {}) == 1
    resume.save(path, model, optimizer, 2, {})
    assert resume.load(path, model, optimizer, {}) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_a_checkpoint_of_another_model_is_refused_by_the_weight_that_does_not_fit(tmp_path: Path) -> None:
    model, path = Tied(), tmp_path / "checkpoint.safetensors"
    resume.save(path, model, adamw(model, OPTIM), 1, {})
    other = Tied()
    other.frozen = nn.Linear(3, 7)
    with pytest.raises(CheckpointError, match=r"does not fit this model at frozen\.weight"):
        resume.load(path, other, adamw(other, OPTIM), {})
