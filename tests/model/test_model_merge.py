"""Averages of models: closed forms of each method, and what cannot be averaged."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints
from demeanor.model.merge import merge, slerp
from demeanor.stack.schema import ModelShape
from tests.conftest import each

SHAPE = ModelShape(layers=1, width=16, heads=2, context=32)


def made(folder: Path, seed: int, shape: ModelShape = SHAPE) -> Path:
    checkpoints.save(checkpoints.create(shape, 31, seed), folder)
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_linear_is_the_weighted_sum_of_every_tensor(tmp_path: Path) -> None:
    a, b, c = (made(tmp_path / n, i) for i, n in enumerate("abc"))
    merge([a, b, c], [0.5, 0.3, 0.2], tmp_path / "out")
    x, y, z, out = (tensors(f) for f in (a, b, c, tmp_path / "out"))
    assert out.keys() == x.keys()
    assert all(torch.allclose(out[n], 0.5 * x[n] + 0.3 * y[n] + 0.2 * z[n], atol=1e-6) for n in x)
    assert (tmp_path / "out" / "config.json").read_bytes() == (a / "config.json").read_bytes()


def test_task_arithmetic_adds_differences_to_the_origin(tmp_path: Path) -> None:
    a, b, origin = (made(tmp_path / n, i) for i, n in enumerate("abo"))
    merge([a, b], [0.9, 0.4], tmp_path / "out", method="task_arithmetic", origin=origin)
    x, y, o, out = (tensors(f) for f in (a, b, origin, tmp_path / "out"))
    assert all(
        torch.allclose(out[n], o[n] + 0.9 * (x[n] - o[n]) + 0.4 * (y[n] - o[n]), atol=1e-6) for n in each(x)
    )


def test_slerp_goes_along_the_circle() -> None:
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    for share in (0.0, 0.25, 0.5, 1.0):
        wanted = torch.tensor([[math.cos(share * math.pi / 2), math.sin(share * math.pi / 2)]])
        assert torch.allclose(slerp(a, b, share), wanted, atol=1e-6)
    assert torch.allclose(slerp(a, 3 * a, 0.5), 2 * a)  # one direction: a line


def test_slerp_of_models_ends_at_the_models(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", 0), made(tmp_path / "b", 1)
    merge([a, b], [0.0, 1.0], tmp_path / "out", method="slerp")
    one, other = tensors(b), tensors(tmp_path / "out")
    assert all(torch.allclose(other[n], one[n], atol=1e-6) for n in each(one))


def test_reward_models_merge_into_a_reward_model(tmp_path: Path) -> None:
    for seed in (0, 1):
        checkpoints.save(
            checkpoints.reward_from(checkpoints.create(SHAPE, 31, 0), seed), tmp_path / str(seed)
        )
    merge([tmp_path / "0", tmp_path / "1"], [0.5, 0.5], tmp_path / "out")
    assert checkpoints.checkpoint_info(tmp_path / "out").reward
    scores = [tensors(tmp_path / n)["score.weight"] for n in ("0", "1", "out")]
    assert torch.allclose(scores[2], (scores[0] + scores[1]) / 2)


def test_models_of_different_shapes_are_refused_by_the_tensor(tmp_path: Path) -> None:
    a = made(tmp_path / "a", 0)
    wide, deep = (
        made(tmp_path / "b", 0, ModelShape(layers=1, width=32, heads=2)),
        made(tmp_path / "c", 0, ModelShape(layers=2, width=16, heads=2)),
    )
    with pytest.raises(
        CheckpointError, match=r"cannot be merged: model\.embed_tokens\.weight is \(31, 16\) and \(31, 32\)"
    ):
        merge([a, wide], [0.5, 0.5], tmp_path / "out")
    with pytest.raises(CheckpointError, match="9 tensors are in only one of them"):
        merge([a, deep], [0.5, 0.5], tmp_path / "out")
    assert not (tmp_path / "out").exists()
