"""Matrices in groups of 32: what packs unpacks, rounding is the best of what llama.cpp tries, odd files are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from demeanor.core.errors import CheckpointError
from demeanor.model import grouped
from demeanor.model.grouped import (
    GROUP,
    GROUP_FORMATS,
    LAYOUTS,
    GroupFormat,
    blocks,
    from_blocks,
    from_integers,
    from_tensors,
    group_panels,
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
    read = from_tensors("m.weight", packed.tensors("m.weight"), "file")
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


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_constant_and_empty_groups_are_held(format: GroupFormat) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 32:] = 0.5
    assert torch.allclose(group_rounded(weight, format).dequantised(), weight, atol=1e-3)
    assert torch.equal(group_rounded(torch.zeros(3, 32), format).dequantised(), torch.zeros(3, 32))


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_the_last_group_may_be_short(format: GroupFormat) -> None:
    weight = matrix(6, 72) + 3.0
    found = group_rounded(weight, format)
    assert found.shape == (6, 72)
    assert found.scales_OG.shape == (6, 3)
    assert torch.equal(found.dequantised()[:, :64], group_rounded(weight[:, :64], format).dequantised())
    tail = (found.dequantised() - weight)[:, 64:].abs().max()
    assert float(tail) <= {"q8_0": 0.03, "q4_0": 0.6, "q4_1": 0.25}[format], (
        "only its own 8 weights set its range"
    )


def test_what_is_odd_or_not_finite_is_refused() -> None:
    with pytest.raises(CheckpointError, match="33 inputs cannot be packed in pairs"):
        group_rounded(torch.ones(2, 33), "q4_0")
    with pytest.raises(CheckpointError, match="not a finite number"):
        group_rounded(torch.full((2, 32), torch.nan), "q4_0")


def test_a_file_whose_tensors_do_not_fit_is_refused() -> None:
    good = group_rounded(matrix(), "q4_1").tensors("w")
    for change, said in (
        ({"w_scale": None}, "stored as _packed 40x48 uint8, _minimum 40x3 float16; wanted _packed"),
        ({"w_packed": None}, "_scale 40x3 float16, _minimum"),
        ({"w_packed": good["w_packed"][:, :30]}, "40x30 uint8, _scale 40x3 float16"),
        ({"w_packed": good["w_packed"].view(torch.int8)}, "40x48 int8"),
        ({"w_packed": good["w_packed"].float()}, "40x48 float32"),
        ({"w_packed": good["w_packed"][0]}, "_packed 48 uint8"),
        ({"w_packed": good["w_packed"][:0], "w_scale": good["w_scale"][:0]}, "0x48 uint8"),
        ({"w_scale": good["w_scale"].float()}, "40x3 float32"),
        ({"w_scale": good["w_scale"][:39]}, "39x3 float16"),
        ({"w_minimum": good["w_minimum"][:, :2]}, "40x2 float16"),
        ({"w_packed": torch.zeros(40, 96, dtype=torch.uint8)}, "40x96 uint8"),
        ({"w_scale": torch.full_like(good["w_scale"], torch.nan)}, "not a finite number"),
        ({"w_minimum": torch.full_like(good["w_scale"], torch.inf)}, "not a finite number"),
    ):
        tensors = {name: x for name, x in {**good, **change}.items() if x is not None}
        with pytest.raises(CheckpointError, match=said):
            from_tensors("w", tensors, "file")


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_blocks_of_gguf_are_another_order_of_the_same_numbers(format: GroupFormat) -> None:
    held = group_rounded(matrix(), format)
    size = {"q8_0": 34, "q4_0": 18, "q4_1": 20}[format]
    stored = blocks(held)
    assert stored.shape == (40, 3, size)
    assert stored.dtype == torch.uint8
    raw = stored[7, 2].numpy().tobytes()  # one block by hand, as ggml-quants.c reads it
    scale = float(np.frombuffer(raw[:2], np.float16)[0])
    low = float(np.frombuffer(raw[2:4], np.float16)[0]) if format == "q4_1" else 0.0
    if format == "q8_0":
        values = np.frombuffer(raw[2:], np.int8).astype(float)
    else:
        data = np.frombuffer(raw[size - 16 :], np.uint8)
        values = np.concatenate([data & 15, data >> 4]).astype(float) - (8 if format == "q4_0" else 0)
    assert np.allclose(held.dequantised()[7, 64:].numpy(), scale * values + low, rtol=1e-6)
    again = from_blocks(format, stored)
    assert torch.equal(again.dequantised(), held.dequantised())
    assert torch.equal(again.packed_OB, held.packed_OB)


@pytest.mark.parametrize("format", GROUP_FORMATS)
def test_panels_do_not_depend_on_how_many_are_laid_out_together(
    format: GroupFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = group_rounded(matrix(7 * 16, 72), format)
    at_once = group_panels(held, 16)
    assert len(at_once) == 7
    monkeypatch.setattr(grouped, "PANELS_AT_ONCE", 3)
    assert torch.equal(group_panels(held, 16), at_once)
