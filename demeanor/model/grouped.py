"""Matrices of small integers with one scale for every 32 inputs: GGUF's Q8_0, Q4_0 and Q4_1.

In: an fp32 matrix and a format, or the tensors of a file. Out: a `Grouped` matrix: packed integers, fp16 scales,
minima where the format has them; the fp32 matrix that it stands for. Knows no model and no product.
Source: ggml's ggml-quants.c (block_q8_0, block_q4_0, block_q4_1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

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


INSTEAD = "name the weights that it was made from, or a GGUF file of the model"
"""What to do about a checkpoint that another program quantised."""
METHOD = "demeanor_groups"
"""`method` in the quantization_config of a folder's config.json. Without `quant_method` transformers refuses the folder;
with one that it does not know it warns and makes random weights."""
Activations: TypeAlias = Literal["int8", "fp32"]


def foreign(raw: Mapping[str, Any]) -> bool:
    """True if a folder's config.json names another way to store quantised weights."""
    settings = raw.get("quantization_config")
    return bool(settings) and not (isinstance(settings, dict) and settings.get("method") == METHOD)


def activations(raw: Mapping[str, Any]) -> Activations:
    """Return what a folder's config.json says of the numbers that groups multiply; int8 if it says nothing."""
    settings = raw.get("quantization_config")
    return "fp32" if isinstance(settings, dict) and settings.get("activations") == "fp32" else "int8"


@dataclass(frozen=True, slots=True, eq=False)
class Grouped:
    """A matrix (outputs O, inputs I) whose weights are scale x integer (+ minimum), G = ceil(I / 32) groups an output.

    Integers of 8 bits are int8. Those of 4 bits lie two in a byte (uint8), the even input in the low half: 0 to 15,
    from which 8 is subtracted if the format has no minima. The last group may be short.
    """

    format: GroupFormat
    packed_OB: Tensor  # B = I bits / 8
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
            return self.packed_OB
        pairs = torch.stack([self.packed_OB & 15, self.packed_OB >> 4], -1).flatten(1).view(torch.int8)
        return pairs if self.minima_OG is not None else pairs - 8

    def dequantised(self) -> Tensor:
        """Return the fp32 matrix (O, I)."""
        outs, ins = self.shape
        groups = _in_groups(self.integers().float()) * self.scales_OG.float()[..., None]
        if self.minima_OG is not None:
            groups += self.minima_OG.float()[..., None]
        return groups.view(outs, -1)[:, :ins].contiguous()

    def rows(self, index: Tensor) -> Grouped:
        """Return some of the outputs."""
        minima = None if self.minima_OG is None else self.minima_OG[index]
        return Grouped(self.format, self.packed_OB[index], self.scales_OG[index], minima)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file; `name` is the matrix's, such as model.layers.0.mlp.up_proj.weight."""
        found = {name + PACKED: self.packed_OB, name + SCALE: self.scales_OG}
        return found if self.minima_OG is None else {**found, name + MINIMUM: self.minima_OG}


def from_blocks(format: GroupFormat, blocks_OGS: Tensor) -> Grouped:
    """Read a matrix from GGUF's blocks: uint8 (O, G, size), scale and minimum before 32 integers.

    With 4 bits the first 16 integers are the low halves of the bytes, the others the high ones.
    """
    layout = LAYOUTS[format]
    beside = blocks_OGS[..., : 4 if layout.minima else 2].contiguous().view(torch.float16)
    data = blocks_OGS[..., 2 * beside.shape[-1] :]
    if layout.bits == 4:
        ordered = torch.cat([data & 15, data >> 4], -1)
        data = ordered[..., ::2] | ordered[..., 1::2] << 4
    else:
        data = data.view(torch.int8)
    minima = beside[..., 1].contiguous() if layout.minima else None
    return Grouped(format, data.flatten(1).contiguous(), beside[..., 0].contiguous(), minima)


def blocks(matrix: Grouped) -> Tensor:
    """Return a matrix of whole groups as GGUF's blocks, the inverse of `from_blocks`."""
    data = matrix.packed_OB.view(torch.uint8).view(*matrix.scales_OG.shape, -1)
    if LAYOUTS[matrix.format].bits == 4:
        ordered = torch.stack([data & 15, data >> 4], -1).flatten(2)
        data = ordered[..., : GROUP // 2] | ordered[..., GROUP // 2 :] << 4
    beside = [x for x in (matrix.scales_OG, matrix.minima_OG) if x is not None]
    return torch.cat([*(x[..., None].contiguous().view(torch.uint8) for x in beside), data], -1)


def joined(parts: Sequence[Grouped], join: Callable[..., Tensor]) -> Grouped:
    """Return matrices of one format as one: `join` stacks or orders the outputs of any tensors (O, ...)."""
    minima = [x.minima_OG for x in parts if x.minima_OG is not None]
    return Grouped(
        parts[0].format,
        join(*(x.packed_OB for x in parts)),
        join(*(x.scales_OG for x in parts)),
        join(*minima) if minima else None,
    )


PANELS_AT_ONCE = 128
"""So many are laid out together: a head of 50,000 outputs would otherwise be in memory four times for a moment."""


def group_panels(matrix: Grouped, outputs: int) -> Tensor:
    """Return the bytes (O / outputs, G, size) that kernels/quantised.h reads; O is a multiple of `outputs`.

    A panel holds for each group: scales, minima, then for each step of 4 inputs 4 unsigned bytes of every output;
    with 4 bits step s is in the low half of a byte and step s + 4 in its high half.
    """
    layout, G, panels = LAYOUTS[matrix.format], matrix.scales_OG.shape[1], len(matrix.packed_OB) // outputs
    size = outputs * (GROUP * layout.bits // 8 + 2 * (1 + layout.minima))
    found = torch.empty(panels, G, size, dtype=torch.uint8)
    for first in range(0, panels, PANELS_AT_ONCE):
        rows = slice(first * outputs, (first + PANELS_AT_ONCE) * outputs)
        minima = None if matrix.minima_OG is None else matrix.minima_OG[rows]
        part = Grouped(matrix.format, matrix.packed_OB[rows], matrix.scales_OG[rows], minima)
        found[first : first + PANELS_AT_ONCE] = _panels(part, outputs)
    return found


def _panels(matrix: Grouped, outputs: int) -> Tensor:
    """The panels of a matrix, all laid out at once."""
    layout, G = LAYOUTS[matrix.format], matrix.scales_OG.shape[1]
    if layout.bits == 8:
        unsigned = _in_groups(matrix.packed_OB).view(torch.uint8) ^ 128  # from two's complement: + 128
    else:
        nibbles = torch.stack([matrix.packed_OB & 15, matrix.packed_OB >> 4], -1).flatten(1)
        halves = _in_groups(nibbles).view(-1, G, 2, GROUP // 2)
        unsigned = halves[:, :, 0] | halves[:, :, 1] << 4
    steps = unsigned.reshape(-1, outputs, G, GROUP * layout.bits // 32, 4).permute(0, 2, 3, 1, 4)
    parts = [steps.reshape(-1, G, outputs * GROUP * layout.bits // 8)]
    for x in (matrix.minima_OG, matrix.scales_OG):
        if x is not None:
            beside = x.view(-1, outputs, G).transpose(1, 2).contiguous()
            parts.insert(0, beside.view(torch.uint8).view(-1, G, 2 * outputs))
    return torch.cat(parts, -1)


def _in_groups(x_OI: Tensor, value: float = 0.0) -> Tensor:
    """Return (O, G, 32); a short last group is filled up."""
    return F.pad(x_OI, (0, -x_OI.shape[1] % GROUP), value=value).view(len(x_OI), -1, GROUP)


def from_integers(
    format: GroupFormat, integers_OI: Tensor, scales_OG: Tensor, minima_OG: Tensor | None = None
) -> Grouped:
    """Pack integers (as `Grouped.integers` returns them) with their scales and minima."""
    packed = integers_OI.to(torch.int8)
    if LAYOUTS[format].bits == 4:
        nibbles = (packed if LAYOUTS[format].minima else packed + 8).view(torch.uint8)
        packed = nibbles[:, ::2] | nibbles[:, 1::2] << 4
    minima = None if minima_OG is None else minima_OG.to(torch.float16).contiguous()
    return Grouped(format, packed.contiguous(), scales_OG.to(torch.float16).contiguous(), minima)


PACKED, SCALE, MINIMUM = PARTS = ("_packed", "_scale", "_minimum")
"""What follows a matrix's name in the names of its tensors."""


def layout(
    name: str, format: GroupFormat, shape: tuple[int, int]
) -> dict[str, tuple[torch.dtype, tuple[int, int]]]:
    """Return types and shapes of what `Grouped.tensors` would return."""
    outs, ins = shape
    bits, minima = LAYOUTS[format]
    beside = (torch.float16, (outs, -(-ins // GROUP)))
    found = {
        name + PACKED: (torch.int8 if bits == 8 else torch.uint8, (outs, ins * bits // 8)),
        name + SCALE: beside,
    }
    return found | ({name + MINIMUM: beside} if minima else {})


def from_tensors(name: str, tensors: Mapping[str, Tensor], where: str) -> Grouped:
    """Read a matrix from the tensors of a file; their types tell the format.

    `where` names the file in the error. Raises CheckpointError naming what does not fit.
    """
    packed, scales, minima = (tensors.get(name + part) for part in PARTS)
    if packed is not None and scales is not None:
        format = stored_format(packed.dtype, minima is not None)
        beside = [x for x in (scales, minima) if x is not None]
        if format is not None and packed.ndim == 2 and packed.numel():
            found = Grouped(format, packed, scales, minima)
            groups = (found.shape[0], -(-found.shape[1] // GROUP))
            if all(x.dtype == torch.float16 and x.shape == groups for x in beside):
                if not all(bool(x.isfinite().all()) for x in beside):
                    raise CheckpointError(f"{where}: {name}: a scale or minimum is not a finite number")
                return found
    got = ", ".join(
        f"{part} {'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}"
        for part, x in zip(PARTS, (packed, scales, minima))
        if x is not None
    )
    raise CheckpointError(
        f"{where}: {name} is stored as {got}; wanted {PACKED} (outputs, inputs) int8 or (outputs, inputs / 2) uint8, "
        f"and {SCALE} (outputs, inputs / {GROUP}) float16, with uint8 perhaps {MINIMUM} like it"
    )


def stored_format(packed: torch.dtype, minima: bool) -> GroupFormat | None:
    """Return the format of integers of a type with or without minima; None for no format."""
    if packed == torch.int8:
        return None if minima else "q8_0"
    return ("q4_1" if minima else "q4_0") if packed == torch.uint8 else None


# ---- rounding ----


def group_rounded(weight_OI: Tensor, format: GroupFormat) -> Grouped:
    """Return a near matrix in a format: of several scales for each group, the one with the least squared error.

    Raises CheckpointError if a
    weight is not finite or the inputs are odd in number. After llama.cpp's make_qx_quants and make_qkx2_quants.
    """
    ins = weight_OI.shape[1]
    if ins % 2:
        raise CheckpointError(f"{format}: a matrix of {ins} inputs cannot be packed in pairs; use int8")
    layout, parts = LAYOUTS[format], []
    weights = _in_groups(torch.ones(1, ins)) if ins % GROUP else None  # 0 where the last group is filled up
    for part in torch.split(weight_OI.detach(), max(1, ROUNDED_AT_ONCE // ins)):
        rows = part.float()
        if not bool(rows.isfinite().all()):
            raise CheckpointError(f"{format}: a weight is not a finite number")
        groups = _in_groups(rows)
        integers, scales, minima = (
            _affine(groups, weights) if layout.minima else _symmetric(groups, weights, layout.bits)
        )
        parts.append(
            from_integers(format, integers.flatten(1)[:, :ins], scales, minima if layout.minima else None)
        )
    return joined(parts, lambda *x: torch.cat(x))


ROUNDED_AT_ONCE = 1 << 18
"""Weights that are rounded together: they and their candidates stay in a core's cache."""
Rounded: TypeAlias = tuple[Tensor, Tensor, Tensor]  # integers (O, G, 32), scales (O, G), minima (O, G)
LARGEST = float(torch.finfo(torch.float16).max)
STEPS: dict[int, tuple[float, ...]] = {
    4: (6.6, 6.9, 7.2, 7.5, 7.8, 8.0, 8.2, 8.5, 8.9),  # what the greatest weight becomes, before rounding
    8: (126.5, 127.0),
}
RANGES = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78)  # shares of the spread of a group that 15 steps cover


def _half(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST).half().float()


def _weighed(weights: Tensor | None, x: Tensor) -> Tensor:
    return x if weights is None else weights * x


def _symmetric(x: Tensor, weights: Tensor | None, bits: int) -> Rounded:
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
            weighed = _weighed(weights, n)
            scale = (weighed * x).sum(-1, keepdim=True) / (weighed * n).sum(-1, keepdim=True).clamp_min(1e-30)
            scale = _half(scale)
            n = _nearest(x, scale, low, high)
            error = _weighed(weights, (x - scale * n).square_()).sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            integers, scales = torch.where(better, n, integers), torch.where(better, scale, scales)
    return integers, scales[..., 0], scales[..., 0]


def _affine(x: Tensor, weights: Tensor | None) -> Rounded:
    """Scale and minimum by least squares for several ranges."""
    if weights is None:
        weights = torch.ones(1, 1, GROUP)
    x = torch.where(weights > 0, x, x[..., :1])  # what fills up a short group widens no range
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
    found = (x / scale).round_().clamp_(low, high)
    return found.masked_fill_(scale == 0, 0.0)
