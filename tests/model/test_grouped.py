"""Matrices in groups of 32: what packs unpacks, rounding is the best of what llama.cpp tries, odd files are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from demeanor.core.errors import CheckpointError
from demeanor.model.grouped import (
    GROUP,
    GROUP_FORMATS,
    LAYOUTS,
    GroupFormat,
    from_integers,
    from_tensors,
    group_rounded,
)

LEVELS: dict[GroupFormat, tuple[int, int]] = {"q8_0": (-128, 127), "q4_0": (-8, 7), "q4_1": (0, 15)}


def matrix(outs: int = 40, ins: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(outs, ins, generator=torch.Generator().manual_seed(seed))


def ggml_rounded(weight_OI: Tensor, format: GroupFormat) -> Tensor:
    """ggml's quantize_row_*_ref, group by group, dequantised: the largest magnitude decides."""
    rows = weight_OI.numpy().reshape(-1, GROUP)
    out = np.empty_like(rows)
    for at, x in enumerate(rows):
        if format == "q4_1":
            scale, low = (x.max() - x.min()) / 15, x.min()
            whole = np.clip(np.floor((x - low) / scale + 0.5), 0, 15)
            out[at] = np.float16(scale) * whole + np.float32(np.float16(low))
            continue
        scale = np.abs(x).max() / 127 if format == "q8_0" else x[np.abs(x).argmax()] / -8
        whole = np.round(x / scale) if format == "q8_0" else np.minimum(15, np.floor(x / scale + 8.5)) - 8
        out[at] = np.float16(scale) * whole
    return torch.from_numpy(out.reshape(weight_OI.shape))


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_integers_and_scales_come_back_as_they_were_packed(format: GroupFormat) -> None:
    low, high = LEVELS[format]
    draw = torch.Generator().manual_seed(1)
    integers = torch.randint(low, high + 1, (5, 64), generator=draw).to(torch.int8)
    scales = torch.randn(5, 2, generator=draw).half()
    minima = torch.randn(5, 2, generator=draw).half() if LAYOUTS[format].minima else None
    packed = from_integers(format, integers, scales, minima)
    assert packed.shape == (5, 64)
    assert packed.num_bytes == 5 * (64 * LAYOUTS[format].bits // 8 + 2 * 2 * (1 + (minima is not None)))
    assert torch.equal(packed.integers(), integers)
    for o, i in ((0, 0), (4, 63), (2, 31), (3, 32)):
        weight = float(scales[o, i // 32]) * int(integers[o, i])
        weight += float(minima[o, i // 32]) if minima is not None else 0.0
        assert float(packed.dequantised()[o, i]) == pytest.approx(weight, rel=1e-6)
    read = from_tensors(format, "m.weight", packed.tensors("m.weight"), "file")
    assert torch.equal(read.dequantised(), packed.dequantised())
    assert torch.equal(packed.rows(torch.tensor([3, 1])).dequantised(), packed.dequantised()[[3, 1]])


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_rounding_is_never_worse_than_ggmls_and_keeps_what_the_format_holds(format: GroupFormat) -> None:
    weight = matrix(64, 128)

    def errors(found: Tensor) -> Tensor:
        return (found - weight).square().unflatten(1, (-1, GROUP)).sum(-1)

    ours, theirs = errors(group_rounded(weight, format).dequantised()), errors(ggml_rounded(weight, format))
    least = {"q8_0": 0.99, "q4_0": 0.88, "q4_1": 0.88}[format]  # of the squared error
    assert float(ours.sum()) < least * float(theirs.sum())
    held = ggml_rounded(weight, format)
    again = group_rounded(held, format).dequantised()
    assert float((again - held).abs().max()) <= 2e-3 * float(held.abs().max())


def test_importance_moves_the_error_to_inputs_that_matter_less() -> None:
    weight, importance = matrix(), torch.ones(96)
    importance[::2] = 100.0
    even, plain = (
        (group_rounded(weight, "q4_0", x).dequantised() - weight)[:, ::2].square().sum()
        for x in (importance, None)
    )
    assert float(even) < 0.9 * float(plain)


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_constant_and_empty_groups_are_held(format: GroupFormat) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 32:] = 0.5
    assert torch.allclose(group_rounded(weight, format).dequantised(), weight, atol=1e-3)
    assert torch.equal(group_rounded(torch.zeros(3, 32), format).dequantised(), torch.zeros(3, 32))


def test_what_has_no_whole_groups_or_is_not_finite_is_refused() -> None:
    with pytest.raises(CheckpointError, match="40 inputs has no whole groups of 32"):
        group_rounded(torch.ones(2, 40), "q4_0")
    with pytest.raises(CheckpointError, match="not a finite number"):
        group_rounded(torch.full((2, 32), torch.nan), "q4_0")


def test_a_file_whose_tensors_do_not_fit_is_refused() -> None:
    good = group_rounded(matrix(), "q4_1").tensors("w")
    for change, said in (
        ({"w_scale": None}, "needs exactly the tensors w_packed, w_scale, w_minimum"),
        ({"w_minimum": None}, "needs exactly"),
        ({"w_packed": good["w_packed"][:, :40]}, "40x40 uint8, 40x3 float16"),
        ({"w_packed": good["w_packed"].view(torch.int8)}, "40x48 int8"),
        ({"w_packed": good["w_packed"][0]}, "48 uint8"),
        ({"w_packed": good["w_packed"][:, :0]}, "40x0 uint8"),
        ({"w_scale": good["w_scale"].float()}, "40x3 float32"),
        ({"w_scale": good["w_scale"][:, :2]}, "40x2 float16"),
        ({"w_scale": torch.full_like(good["w_scale"], torch.nan)}, "not a finite number"),
        ({"w_minimum": torch.full_like(good["w_scale"], torch.inf)}, "not a finite number"),
    ):
        tensors = {name: x for name, x in {**good, **change}.items() if x is not None}
        with pytest.raises(CheckpointError, match=said):
            from_tensors("q4_1", "w", tensors, "file")
    with pytest.raises(CheckpointError, match="unknown format 'q2_k'; known: q8_0, q4_0, q4_1"):
        from_tensors("q2_k", "w", good, "file")
