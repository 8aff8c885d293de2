"""The number formats of GGUF: blocks of quantised weights to fp32, and fp32 to the formats that are written.

In: the bytes of a tensor, or a tensor. Out: fp32 values, or bytes. Each formula is ggml's, in its order of
operations, so values are equal bit for bit to those of llama.cpp's Python package (tests/parity).
Source: ggml-quants.c and gguf-py/gguf/quants.py of llama.cpp.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from demeanor.core.errors import CheckpointError


class BlockFormat(NamedTuple):
    """The number of a format in a file, and the elements and bytes of one of its blocks."""

    kind: int
    elements: int
    size: int


LAYOUTS = {
    "F32": BlockFormat(0, 1, 4),
    "F16": BlockFormat(1, 1, 2),
    "Q4_0": BlockFormat(2, 32, 18),
    "Q4_1": BlockFormat(3, 32, 20),
    "Q5_0": BlockFormat(6, 32, 22),
    "Q5_1": BlockFormat(7, 32, 24),
    "Q8_0": BlockFormat(8, 32, 34),
    "Q2_K": BlockFormat(10, 256, 84),
    "Q3_K": BlockFormat(11, 256, 110),
    "Q4_K": BlockFormat(12, 256, 144),
    "Q5_K": BlockFormat(13, 256, 176),
    "Q6_K": BlockFormat(14, 256, 210),
    "IQ2_XXS": BlockFormat(16, 256, 66),
    "IQ2_XS": BlockFormat(17, 256, 74),
    "IQ3_XXS": BlockFormat(18, 256, 98),
    "IQ1_S": BlockFormat(19, 256, 50),
    "IQ4_NL": BlockFormat(20, 32, 18),
    "IQ3_S": BlockFormat(21, 256, 110),
    "IQ2_S": BlockFormat(22, 256, 82),
    "IQ4_XS": BlockFormat(23, 256, 136),
    "IQ1_M": BlockFormat(29, 256, 56),
    "BF16": BlockFormat(30, 1, 2),
    "TQ1_0": BlockFormat(34, 256, 54),
    "TQ2_0": BlockFormat(35, 256, 66),
    "MXFP4": BlockFormat(39, 32, 17),
    "NVFP4": BlockFormat(40, 64, 36),
    "Q1_0": BlockFormat(41, 128, 18),
}
NAMES = {layout.kind: name for name, layout in LAYOUTS.items()}


def dequantised(raw: Tensor, form: str, where: str) -> Tensor:
    """Return the values (n,) of a tensor's bytes, fp32; F16 and BF16 stay as they are.

    Raises CheckpointError for a format that only the package `gguf` knows where it is not installed.
    """
    if form in PLAIN:
        return raw.view(PLAIN[form])
    blocks_NB = raw.view(-1, LAYOUTS[form].size)
    if form in FORMULAS:
        found = torch.empty(len(blocks_NB), LAYOUTS[form].elements)
        for values_NE, part_NB in zip(torch.split(found, AT_ONCE), torch.split(blocks_NB, AT_ONCE)):
            values_NE.copy_(FORMULAS[form](part_NB).view_as(values_NE))
        return found.view(-1)
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"{where} is in {form}; reading it needs llama.cpp's own package: pip install 'demeanor[gguf]'. Without it: "
            f"{', '.join([*PLAIN, *FORMULAS])}"
        )
    import gguf  # type: ignore[import-not-found,unused-ignore]

    kind = gguf.GGMLQuantizationType(LAYOUTS[form].kind)
    values: Tensor = torch.from_numpy(gguf.dequantize(blocks_NB.numpy(), kind))
    return values.reshape(-1)


AT_ONCE = 1 << 16
"""Blocks that are worked on together: a head of 128,000 tokens would otherwise be in memory several times in fp32."""
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _half(blocks_NB: Tensor, begin: int) -> Tensor:
    """The fp16 number at a byte of each block, fp32 (N, 1)."""
    return blocks_NB[:, begin : begin + 2].contiguous().view(torch.float16).float()


def _nibbles(bytes_NB: Tensor, group: int) -> Tensor:
    """The low, then the high four bits of each `group` bytes, uint8 (N, 2B)."""
    split = bytes_NB.reshape(len(bytes_NB), -1, 1, group)
    return torch.cat([split & 15, split >> 4], 2).flatten(1)


def _bits(bytes_NB: Tensor, group: int, width: int) -> Tensor:
    """Fields of `width` bits, lowest first, each over `group` bytes, uint8 (N, B * 8 / width)."""
    split = bytes_NB.reshape(len(bytes_NB), -1, 1, group)
    shifts = torch.arange(0, 8, width, dtype=torch.uint8).view(1, 1, -1, 1)
    fields: Tensor = (split >> shifts) & (2**width - 1)
    return fields.flatten(1)


def _high_bits(bytes_N4: Tensor) -> Tensor:
    """The 32 bits of four bytes, lowest first, uint8 (N, 32)."""
    bits: Tensor = (bytes_N4[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:], 16).float() - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:], 16).float() + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    five = _nibbles(b[:, 6:], 16) | (_high_bits(b[:, 2:6]) << 4)
    return _half(b, 0) * (five.float() - 16)


def _q5_1(b: Tensor) -> Tensor:
    five = _nibbles(b[:, 8:], 16) | (_high_bits(b[:, 4:8]) << 4)
    return _half(b, 0) * five.float() + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:].contiguous().view(torch.int8).float()


def _q2_k(b: Tensor) -> Tensor:
    scales, d, low = b[:, :16], _half(b, 80), _half(b, 82)
    quants = _bits(b[:, 16:80], 32, 2).view(-1, 16, 16).float()
    return (d * (scales & 15).float())[..., None] * quants - (low * (scales >> 4).float())[..., None]


def _q3_k(b: Tensor) -> Tensor:
    scales = _nibbles(b[:, 96:104], 8) | (_bits(b[:, 104:108], 4, 2) << 4)
    scaled = _half(b, 108) * (scales.float() - 32)
    high = _bits(b[:, :32], 32, 1) ^ 1  # a set bit means: subtract nothing
    quants = _bits(b[:, 32:96], 32, 2).float() - (high << 2).float()
    return scaled[..., None] * quants.view(-1, 16, 16)


def _six_bits(b_N12: Tensor) -> tuple[Tensor, Tensor]:
    """The eight 6-bit scales and minima in 12 bytes of Q4_K and Q5_K, fp32 (N, 8)."""
    d, m, both = b_N12.view(-1, 3, 4).unbind(1)
    scales = torch.cat([d & 63, (both & 15) | ((d >> 2) & 48)], 1)
    minima = torch.cat([m & 63, (both >> 4) | ((m >> 2) & 48)], 1)
    return scales.float(), minima.float()


def _q4_k(b: Tensor) -> Tensor:
    scales, minima = _six_bits(b[:, 4:16].contiguous())
    quants = _nibbles(b[:, 16:], 32).view(-1, 8, 32).float()
    return (_half(b, 0) * scales)[..., None] * quants - (_half(b, 2) * minima)[..., None]


def _q5_k(b: Tensor) -> Tensor:
    scales, minima = _six_bits(b[:, 4:16].contiguous())
    five = _nibbles(b[:, 48:], 32) | (_bits(b[:, 16:48], 32, 1) << 4)
    quants = five.view(-1, 8, 32).float()
    return (_half(b, 0) * scales)[..., None] * quants - (_half(b, 2) * minima)[..., None]


def _q6_k(b: Tensor) -> Tensor:
    six = _nibbles(b[:, :128], 64) | (_bits(b[:, 128:192], 32, 2) << 4)
    scales = _half(b, 208) * b[:, 192:208].contiguous().view(torch.int8).float()
    return scales[..., None] * (six.float() - 32).view(-1, 16, 16)


LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The sixteen values of IQ4_NL and IQ4_XS."""


def _levels(bytes_NB: Tensor) -> Tensor:
    return torch.tensor(LEVELS, dtype=torch.float32)[_nibbles(bytes_NB, 16).int()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b, 0) * _levels(b[:, 2:])


def _iq4_xs(b: Tensor) -> Tensor:
    low, high = _nibbles(b[:, 4:8], 1), _bits(b[:, 2:4], 1, 2)
    scales = _half(b, 0) * ((low | (high << 4)).float() - 32)
    return scales[..., None] * _levels(b[:, 8:]).view(-1, 8, 32)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


# ---- fp32 to blocks ----


def quantised(values: Tensor, form: str) -> Tensor:
    """Return the bytes (n,) of values in F32, F16, BF16, Q8_0 or Q4_0, as llama.cpp's converter writes them."""
    flat = values.detach().to("cpu").contiguous().view(-1)
    if form in PLAIN:
        return flat.to(PLAIN[form]).view(torch.uint8)
    form_of = _to_q8_0 if form == "Q8_0" else _to_q4_0
    found = torch.empty(len(flat) // 32, LAYOUTS[form].size, dtype=torch.uint8)
    for blocks_NB, part in zip(torch.split(found, AT_ONCE), torch.split(flat, 32 * AT_ONCE)):
        blocks_NB.copy_(form_of(part.float().view(-1, 32)))
    return found.view(-1)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d == 0, torch.zeros_like(d), 1 / d)


def _to_q8_0(blocks_N32: Tensor) -> Tensor:
    d = blocks_N32.abs().amax(1, keepdim=True) / 127
    scaled = blocks_N32 * _inverse(d)
    away = scaled.sign() * (scaled.abs().floor() + (2 * (scaled.abs() - scaled.abs().floor())).floor())
    return torch.cat([d.half().view(torch.uint8), away.to(torch.int8).view(torch.uint8)], 1)


def _to_q4_0(blocks_N32: Tensor) -> Tensor:
    largest = blocks_N32.gather(1, blocks_N32.abs().argmax(1, keepdim=True))
    d = largest / -8
    quants = (blocks_N32 * _inverse(d) + 8.5).trunc().clamp(0, 15).to(torch.uint8)
    return torch.cat([d.half().view(torch.uint8), quants[:, :16] | (quants[:, 16:] << 4)], 1)
