"""Quantized weights: 4-bit matrices under an adapter while training, and rounding a policy to few bits.

In: a model with adapters on its device, or a policy's folder. Out: the model with NF4 matrices (bitsandbytes,
CUDA only; the adapter stays fp32), or a folder of rounded weights: int8 or bf16 values in fp32, or groups.
Source: Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demeanor.core.errors import CheckpointError
from demeanor.model import checkpoints
from demeanor.model.adapters import adapters, replace_module
from demeanor.model.deferred import Deferred, numbers
from demeanor.model.grouped import Activations, Grouped, GroupFormat, group_rounded
from demeanor.model.grouped_modules import keep_grouped, matrices
from demeanor.model.llama import Llama
from demeanor.model.low_rank import LoraLinear
from demeanor.model.native import Format, rounded
from demeanor.stack.schema import Adapter


def require(adapter: Adapter | None, stage: str) -> None:
    """Raise CheckpointError if an adapter asks for 4 bits and this machine cannot provide them."""
    if adapter is None or adapter.quantise is None:
        return
    missing = [] if torch.cuda.is_available() else ["a CUDA device"]
    if not importlib.util.find_spec("bitsandbytes"):
        missing.append("the package bitsandbytes (pip install bitsandbytes)")
    if missing:
        raise CheckpointError(
            f"{stage}: adapter.quantise: {adapter.quantise} needs {' and '.join(missing)}, not found here; "
            "set it to null for an ordinary adapter"
        )


class QuantizedLora(LoraLinear):
    """An adapted map whose frozen matrix is stored in NF4 and unpacked for each product."""

    def __init__(self, plain: LoraLinear) -> None:
        nn.Module.__init__(self)
        import bitsandbytes.functional as bnb  # type: ignore[import-not-found,unused-ignore]

        self.bias, self.scale, self.lora_A, self.lora_B = plain.bias, plain.scale, plain.lora_A, plain.lora_B
        self._unpack: Any = bnb.dequantize_4bit
        self._packed, self._state = bnb.quantize_4bit(plain.weight.detach(), quant_type="nf4")

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self._unpack(self._packed, self._state)
        return F.linear(x, weight, self.bias) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


def freeze(model: nn.Module) -> None:
    """Quantize the matrix of every adapted map to NF4, in place."""
    for name, module in list(adapters(model)):
        replace_module(model, name, QuantizedLora(module))


@torch.no_grad()
def write(source: Path, out: Path, kind: Format) -> None:
    """Write the policy of `source` to `out` with its linear maps and its head rounded to `kind`."""
    if checkpoints.checkpoint_info(source).lean:
        lean = checkpoints.load(source, deferred=True)
        for name, matrix in _matrices(lean):
            if isinstance(lean.get_submodule(name), nn.Linear) or lean.config.tie_word_embeddings:
                keep_grouped(lean, f"{name}.weight", _later(matrix, partial(_nearest, kind=kind)))
        checkpoints.save(lean, out, shard_bytes=checkpoints.SHARD_BYTES)
        return
    model = checkpoints.policy(source)
    done: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and isinstance(weight, Tensor) and weight.data_ptr() not in done:
            done.add(weight.data_ptr())
            weight.copy_(nearest(weight, kind))
    checkpoints.save_checkpoint(model, out)


@torch.no_grad()
def write_groups(
    source: Path, out: Path, format: GroupFormat, *, head: GroupFormat, activations: Activations
) -> None:
    """Write the policy of `source` to `out` with its matrices in groups: linear maps and an embedding of its own in
    `format`, the head and an embedding tied to it in `head`.

    Raises CheckpointError for an architecture that runs through transformers.
    """
    if not checkpoints.checkpoint_info(source).lean:
        raise CheckpointError(
            f"{source}: its architecture runs through transformers, which has no {format} here; use int8 or bf16"
        )
    model = checkpoints.load(source, deferred=True)
    tied = model.config.tie_word_embeddings
    for name, matrix in _matrices(model):
        last = name == "lm_head" or (tied and name == "model.embed_tokens")
        chosen = head if last else format
        keep_grouped(model, f"{name}.weight", _later(matrix, partial(group_rounded, format=chosen), chosen))
    checkpoints.save(model, out, activations=activations, shard_bytes=checkpoints.SHARD_BYTES)


def _matrices(model: Llama) -> list[tuple[str, Deferred]]:
    """The matrices of a model that was loaded deferred, by the names of their modules; one that an adapter replaced is in memory."""
    found = dict[str, Deferred]()
    for name, x in matrices(model).items():
        found[name] = x if isinstance(x, Deferred) else Deferred(x.shape, x.dequantised)
    for name, tensor in model.named_parameters():
        if tensor.ndim == 2:
            found[name] = Deferred((tensor.shape[0], tensor.shape[1]), tensor.detach)
    return [(name.removesuffix(".weight"), x) for name, x in found.items()]


def _later(
    matrix: Deferred, rounded: Callable[[Tensor], Tensor | Grouped], format: GroupFormat | None = None
) -> Deferred:
    """A matrix that is rounded when it is written."""
    return Deferred(matrix.shape, lambda: rounded(numbers(matrix)), format=format)


def _nearest(weight_OI: Tensor, kind: Format) -> Tensor:
    return nearest(weight_OI.float(), kind)


def nearest(weight_OI: Tensor, kind: Format) -> Tensor:
    """Return the nearest matrix in a format: int8 with one scale per output (symmetric, absolute maximum),
    or bf16."""
    if kind == "int8":
        small, scale_O = rounded(weight_OI.float())
        return (small * scale_O[:, None]).to(weight_OI.dtype)
    return weight_OI.bfloat16().to(weight_OI.dtype) if kind == "bf16" else weight_OI
