"""Matrices of small integers with one scale for every 32 inputs: GGUF's Q8_0, Q4_0 and Q4_1.

In: an fp32 matrix and a format, or the tensors of a file. Out: a `Grouped` matrix: packed integers, fp16 scales,
minima where the format has them; the fp32 matrix that it stands for. Knows no model and no product.
Source: ggml's ggml-quants.c (block_q8_0, block_q4_0, block_q4_1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor

from demeanor.core.errors import CheckpointError

GROUP = 32  # inputs that share a scale
GroupFormat: TypeAlias = Literal["q8_0", "q4_0", "q4_1"]
GROUP_FORMATS: tuple[GroupFormat, ...] = get_args(GroupFormat)


class GroupLayout(NamedTuple):
    """Bits of an integer, and whether each group has a minimum that is added to the scaled integers."""

    bits: int
    minima: bool


LAYOUTS: dict[GroupFormat, GroupLayout] = {
    "q8_0": GroupLayout(8, minima=False),
    "q4_0": GroupLayout(4, minima=False),
    "q4_1": GroupLayout(4, minima=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """A matrix (outputs O, inputs I) whose weights are scale x integer (+ minimum), G = I / 32 groups an output.

    Integers of 8 bits are bytes in two's complement. Those of 4 bits lie two in a byte, the even input in the
    low half: 0 to 15, from which 8 is subtracted if the format has no minima.
    """

    format: GroupFormat
    packed_OB: Tensor  # uint8, B = I bits / 8
    scales_OG: Tensor  # fp16
    minima_OG: Tensor | None = None  # fp16

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return len(self.packed_OB), self.packed_OB.shape[1] * 8 // LAYOUTS[self.format].bits

    @property
    def num_bytes(self) -> int:
        """Bytes of integers, scales and minima."""
        tensors = (self.packed_OB, self.scales_OG, self.minima_OG)
        return sum(x.numel() * x.element_size() for x in tensors if x is not None)

    def integers(self) -> Tensor:
        """Return the integers as int8 (O, I): -128 to 127, -8 to 7, or with minima 0 to 15."""
        if LAYOUTS[self.format].bits == 8:
            return self.packed_OB.view(torch.int8)
        pairs = torch.stack([self.packed_OB & 15, self.packed_OB >> 4], -1).flatten(1).view(torch.int8)
        return pairs if self.minima_OG is not None else pairs - 8

    def dequantised(self) -> Tensor:
        """Return the fp32 matrix (O, I)."""
        groups = (
            self.integers().view(len(self.packed_OB), -1, GROUP).float() * self.scales_OG.float()[..., None]
        )
        return (groups if self.minima_OG is None else groups + self.minima_OG.float()[..., None]).flatten(1)

    def rows(self, index: Tensor) -> Grouped:
        """Return some of the outputs."""
        minima = None if self.minima_OG is None else self.minima_OG[index]
        return Grouped(self.format, self.packed_OB[index], self.scales_OG[index], minima)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file; `name` is the matrix's, such as model.layers.0.mlp.up_proj.weight."""
        found = {f"{name}_packed": self.packed_OB, f"{name}_scale": self.scales_OG}
        return found if self.minima_OG is None else {**found, f"{name}_minimum": self.minima_OG}


def joined(parts: Sequence[Grouped], join: Callable[..., Tensor]) -> Grouped:
    """Return matrices of one format as one: `join` stacks or orders the outputs of any tensors (O, ...)."""
    minima = [x.minima_OG for x in parts if x.minima_OG is not None]
    return Grouped(
        parts[0].format,
        join(*(x.packed_OB for x in parts)),
        join(*(x.scales_OG for x in parts)),
        join(*minima) if minima else None,
    )


def group_panels(matrix: Grouped, outputs: int) -> Tensor:
    """Return the bytes (O / outputs, G, size) that kernels/quantised.h reads; O is a multiple of `outputs`.

    A panel holds for each group: scales, minima, then for each step of 4 inputs 4 unsigned bytes of every output;
    with 4 bits step s is in the low half of a byte and step s + 4 in its high half.
    """
    layout, G = LAYOUTS[matrix.format], matrix.scales_OG.shape[1]
    unsigned = matrix.packed_OB ^ 128  # from two's complement: + 128
    if layout.bits == 4:
        halves = torch.stack([matrix.packed_OB & 15, matrix.packed_OB >> 4], -1).flatten(1)
        halves = halves.view(-1, G, 2, GROUP // 2)
        unsigned = halves[:, :, 0] | halves[:, :, 1] << 4
    steps = unsigned.reshape(-1, outputs, G, GROUP * layout.bits // 32, 4).permute(0, 2, 3, 1, 4)
    parts = [steps.reshape(-1, G, outputs * GROUP * layout.bits // 8)]
    for x in (matrix.minima_OG, matrix.scales_OG):
        if x is not None:
            beside = x.view(-1, outputs, G).transpose(1, 2).contiguous()
            parts.insert(0, beside.view(torch.uint8).view(-1, G, 2 * outputs))
    return torch.cat(parts, -1)


def from_integers(
    format: GroupFormat, integers_OI: Tensor, scales_OG: Tensor, minima_OG: Tensor | None = None
) -> Grouped:
    """Pack integers (as `Grouped.integers` returns them) with their scales and minima."""
    packed = integers_OI.to(torch.int8).contiguous().view(torch.uint8)
    if LAYOUTS[format].bits == 4:
        nibbles = packed if LAYOUTS[format].minima else packed + 8  # uint8 wraps, as two's complement does
        packed = nibbles[:, ::2] | nibbles[:, 1::2] << 4
    minima = None if minima_OG is None else minima_OG.to(torch.float16).contiguous()
    return Grouped(format, packed.contiguous(), scales_OG.to(torch.float16).contiguous(), minima)


def from_tensors(format: str, name: str, tensors: Mapping[str, Tensor], where: str) -> Grouped:
    """Read a matrix from the tensors of a file; raises CheckpointError naming what does not fit.

    `where` names the file in the error.
    """
    if format not in LAYOUTS:
        raise CheckpointError(
            f"{where}: {name}: unknown format {format!r}; known: {', '.join(GROUP_FORMATS)}"
        )
    layout = LAYOUTS[format]
    packed, scales, minima = (tensors.get(f"{name}_{x}") for x in ("packed", "scale", "minimum"))
    if packed is None or scales is None or (minima is None) == layout.minima:
        wanted = ["packed", "scale", *(["minimum"] if layout.minima else [])]
        raise CheckpointError(
            f"{where}: {name} in {format} needs exactly the tensors {', '.join(f'{name}_{x}' for x in wanted)}"
        )
    size = GROUP * layout.bits // 8  # bytes of a group
    fits = packed.dtype == torch.uint8 and packed.ndim == 2 and packed.shape[1] % size == 0 and packed.numel()
    groups = (len(packed), packed.shape[1] // size) if fits else ()
    beside = [scales] if minima is None else [scales, minima]
    if not fits or any(x.dtype != torch.float16 or tuple(x.shape) != groups for x in beside):
        got = ", ".join(
            f"{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}" for x in (packed, *beside)
        )
        raise CheckpointError(
            f"{where}: {name} in {format} has tensors {got}; wanted (outputs, {size} x groups) uint8 and "
            "(outputs, groups) float16"
        )
    if not all(bool(x.isfinite().all()) for x in beside):
        raise CheckpointError(f"{where}: {name}: a scale or minimum is not a finite number")
    return Grouped(format, packed, scales, minima)


# ---- rounding ----


def group_rounded(weight_OI: Tensor, format: GroupFormat, importance_I: Tensor | None = None) -> Grouped:
    """Return a near matrix in a format: of several scales for each group, the one with the least squared error.

    `importance_I` weights the squared errors, e.g. by the mean square of each input. Raises CheckpointError if the
    inputs are not whole groups or a weight is not finite. After llama.cpp's make_qx_quants and make_qkx2_quants.
    """
    if weight_OI.shape[1] % GROUP:
        raise CheckpointError(
            f"{format}: a matrix of {weight_OI.shape[1]} inputs has no whole groups of {GROUP}; use int8"
        )
    if not bool(weight_OI.isfinite().all()):
        raise CheckpointError(f"{format}: a weight is not a finite number")
    layout, parts = LAYOUTS[format], []
    most = max(1, 2**20 // weight_OI.shape[1])
    for rows in torch.split(weight_OI.detach().float(), most):
        groups = rows.view(len(rows), -1, GROUP)
        weights = torch.ones_like(groups[:1]) if importance_I is None else importance_I.view(1, -1, GROUP)
        parts.append(_affine(groups, weights) if layout.minima else _symmetric(groups, weights, layout.bits))
    integers, scales = (torch.cat(x) for x in zip(*(part[:2] for part in parts)))
    minima = torch.cat([part[2] for part in parts]) if layout.minima else None
    return from_integers(format, integers.flatten(1), scales, minima)


Rounded: TypeAlias = tuple[Tensor, Tensor, Tensor]  # integers (O, G, 32), scales (O, G), minima (O, G)
LARGEST = float(torch.finfo(torch.float16).max)
STEPS: dict[int, tuple[float, ...]] = {
    4: (6.6, 6.9, 7.2, 7.5, 7.8, 8.0, 8.2, 8.5, 8.9),  # what the greatest weight becomes, before rounding
    8: (126.5, 127.0),
}
RANGES = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78)  # shares of the spread of a group that 15 steps cover


def _half(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST).half().float()


def _symmetric(x: Tensor, weights: Tensor, bits: int) -> Rounded:
    """Scales of either sign: with 4 bits the greatest weight may become -8, which has no counterpart."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    peak = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best = x.new_full((*x.shape[:-1], 1), torch.inf)
    integers, scales = torch.zeros_like(x), torch.zeros_like(peak)
    for step in STEPS[bits]:
        for sign in (-1.0, 1.0) if bits == 4 else (1.0,):
            scale = peak * (sign / step)
            n = _nearest(x, scale, low, high)
            # Least squares of x = scale n, then the integers nearest with the scale as it is stored.
            scale = (weights * x * n).sum(-1, keepdim=True) / (weights * n * n).sum(
                -1, keepdim=True
            ).clamp_min(1e-30)
            scale = _half(scale)
            n = _nearest(x, scale, low, high)
            error = (weights * (x - scale * n).square()).sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            integers, scales = torch.where(better, n, integers), torch.where(better, scale, scales)
    return integers, scales[..., 0], scales[..., 0]


def _affine(x: Tensor, weights: Tensor) -> Rounded:
    """Scale and minimum by least squares for several ranges."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    best = torch.full_like(low, torch.inf)
    integers, scales, minima = torch.zeros_like(x), torch.zeros_like(low), _half(low)
    total = weights.sum(-1, keepdim=True)
    for share in RANGES:
        scale = (high - low) * (share / 15)
        minimum = (high + low - 15 * scale) / 2
        n = _nearest(x - minimum, scale, 0, 15)
        mean_x, mean_n = ((weights * y).sum(-1, keepdim=True) / total for y in (x, n))
        spread = (weights * (n - mean_n).square()).sum(-1, keepdim=True).clamp_min(1e-30)
        scale = _half((weights * (x - mean_x) * (n - mean_n)).sum(-1, keepdim=True) / spread)
        minimum = _half(mean_x - scale * mean_n)
        n = _nearest(x - minimum, scale, 0, 15)
        error = (weights * (x - minimum - scale * n).square()).sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        integers, scales = torch.where(better, n, integers), torch.where(better, scale, scales)
        minima = torch.where(better, minimum, minima)
    return integers, scales[..., 0], minima[..., 0]


def _nearest(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The nearest integers to x / scale; 0 where the scale is 0."""
    return torch.where(scale == 0, torch.zeros_like(x), x / scale).round_().clamp_(low, high)
