"""Memory of a model that is served, before its weights are read: what the compiled decoder will hold, and whether that fits here.

In: a model that was loaded deferred. Out: bytes, or a CheckpointError that says what to do. Follows the formats that
`model/native.py` chooses; knows no cache of keys and values.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from demeanor.core import hardware
from demeanor.core.errors import CheckpointError
from demeanor.model.deferred import Deferred
from demeanor.model.grouped import Grouped, GroupFormat, layout
from demeanor.model.grouped_modules import matrices
from demeanor.model.llama import Llama
from demeanor.model.native import MOST_RANK, PROBED, Compute, narrowest

log = logging.getLogger("demeanor.model")

SIZES = {"int8": 1, "bf16": 2, "fp32": 4}


def packed_bytes(model: Llama, compute: Compute = "fp32") -> int:
    """Return the bytes of all weights as the compiled decoder holds them.

    A matrix in fp32 may hold numbers of fewer bits: some rows of each kind of matrix are looked at.
    """
    held = matrices(model)
    known: dict[str, int] = {}
    total = sum(4 * x.numel() for name, x in model.named_parameters() if name not in held and x.ndim < 2)
    whole = {name: x for name, x in model.named_parameters() if x.ndim == 2 and not _is_low_rank(name)}
    total += sum(4 * x.numel() for name, x in model.named_parameters() if x.ndim == 2 and _is_low_rank(name))
    for name, matrix in {**whole, **held}.items():
        if not isinstance(matrix, Tensor) and matrix.format is not None:
            total += group_bytes(name, matrix.shape, matrix.format)
            continue
        kind = re.sub(r"\.\d+\.", ".", name)
        if kind not in known:
            known[kind] = _item_bytes(matrix, compute)
        total += known[kind] * math.prod(matrix.shape)
    return total


def size(count: float) -> str:
    """A number of bytes in GB or MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def group_bytes(name: str, shape: tuple[int, int], format: GroupFormat) -> int:
    """Return the bytes of a matrix in groups."""
    return sum(dtype.itemsize * math.prod(part) for dtype, part in layout(name, format, shape).values())


def _is_low_rank(name: str) -> bool:
    return name.endswith(("lora_A", "lora_B"))


def _item_bytes(matrix: Tensor | Grouped | Deferred, compute: Compute) -> int:
    """Bytes of a weight of a matrix that is not in groups."""
    if isinstance(matrix, Grouped) or (isinstance(matrix, Deferred) and matrix.dtype == torch.bfloat16):
        return 2
    if isinstance(matrix, Tensor):
        own = SIZES[narrowest(matrix[:PROBED])]
    else:
        own = 4 if matrix.peek is None else SIZES[narrowest(matrix.peek(PROBED))]
    return min(own, 2) if compute == "bf16" else own


def require_room(model: Llama, compute: Compute, least_cache: int) -> int:
    """Return the bytes of the weights; raise CheckpointError if the machine's memory cannot hold them and a cache of `least_cache` bytes;
    warn if what is free now cannot."""
    weights, there = packed_bytes(model, compute), hardware.memory_bytes()
    needed = weights + least_cache
    if there is not None and needed > there:
        raise CheckpointError(
            f"the weights need {needed / 2**30:.1f} GiB as they are served; this machine has {there / 2**30:.1f} GiB. "
            f"{smaller(model, there)}"
        )
    free = hardware.free_bytes()
    if free is not None and needed > free:
        log.warning(
            "the weights need %.1f GiB as they are served, and %.1f GiB are free now: the system may stop this process. End other "
            "programs, or serve fewer bits a weight (a stage of kind quantise)",
            needed / 2**30,
            free / 2**30,
        )
    return weights


def require_room_in_fp32(model: Llama) -> None:
    """Raise CheckpointError if matrices in groups or in files, unpacked as torch decodes them, do not fit into the machine's memory."""
    held, there = matrices(model), hardware.memory_bytes()
    needed = 4 * (sum(math.prod(x.shape) for x in held.values()) + sum(x.numel() for x in model.parameters()))
    if held and there is not None and needed > there:
        raise CheckpointError(
            f"the weights need {needed / 2**30:.1f} GiB in fp32, as torch decodes them; this machine has {there / 2**30:.1f} GiB. The "
            "compiled decoder takes them as they are stored: it needs a C++ compiler (g++ or clang++) and adapters of rank up to "
            f"{MOST_RANK}"
        )


def smaller(model: Llama, there: int) -> str:
    """Say which rounding fits."""
    sizes: Mapping[GroupFormat, int] = {x: _rounded_bytes(model, x) for x in ("q8_0", "q4_0")}
    told = " or ".join(f"{name} ({size / 2**30:.1f} GiB)" for name, size in sizes.items() if size < there)
    if not told:
        return "Even 4 bits a weight do not fit: take a smaller model"
    return f"Add a stage {{name: small, kind: quantise, format: FORMAT}} with {told}: rounding needs memory for one matrix at a time"


def _rounded_bytes(model: Llama, format: GroupFormat) -> int:
    """Bytes of a model in groups, its head in q8_0."""
    config = model.config
    head = (config.vocab_size, config.hidden_size)
    body = sum(math.prod(x.shape) for x in matrices(model).values()) - math.prod(head)
    part = group_bytes("", (1, 32), format) / 32
    return int(group_bytes("", head, "q8_0") + part * body)
