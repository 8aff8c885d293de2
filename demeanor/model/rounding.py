"""Weights rounded to few bits: what a quantised server computes with, written as an ordinary folder that anything reads.

In: the folder of a policy. Out: the same with every linear map rounded, in fp32 files. The engine finds that 8 or 16 bits hold the
matrices and keeps them so (model/native.py); any other reader computes with the same numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from demeanor.model import folders
from demeanor.model.llama import Llama
from demeanor.model.native import Format, rounded


@torch.no_grad()
def write(source: Path, out: Path, kind: Format) -> None:
    """Write the policy of `source` to `out` with its linear maps, and its head, rounded to `kind`."""
    model = folders.policy(source)
    done: set[int] = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear) and isinstance(weight, Tensor) and weight.data_ptr() not in done:
            done.add(weight.data_ptr())
            weight.copy_(nearest(weight, kind))
    if isinstance(model, Llama) and model.head().data_ptr() not in done:  # tied: the embedding is the head
        model.head().copy_(nearest(model.head(), kind))
    folders.save(model, out)


def nearest(weight_OI: Tensor, kind: Format) -> Tensor:
    """The nearest matrix that `kind` holds: int8 with one scale per output (symmetric, absolute maximum), or bf16."""
    if kind == "int8":
        small, scale_O = rounded(weight_OI.float())
        return (small * scale_O[:, None]).to(weight_OI.dtype)
    return weight_OI.bfloat16().to(weight_OI.dtype) if kind == "bf16" else weight_OI
