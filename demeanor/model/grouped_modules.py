"""Modules whose matrix is no parameter: it stays in groups, or in its file, until the compiled decoder packs it.

In: a `Grouped` or `Deferred` matrix and the module that it replaces. Out: a module with the same forward in fp32, which unpacks
or reads the matrix for each call; only the compiled decoder avoids that.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demeanor.model.deferred import Deferred
from demeanor.model.grouped import Grouped
from demeanor.model.llama import Embedding
from demeanor.model.low_rank import LoraLinear

Matrix: TypeAlias = Grouped | Deferred


class GroupedLinear(nn.Linear):
    """x W^T + b; W is unpacked where it is read."""

    def __init__(self, grouped: Matrix, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = grouped.shape
        self.grouped, self.bias = grouped, cast(nn.Parameter, bias)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.grouped.dequantised()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class GroupedEmbedding(nn.Module):
    """Rows of W; of a tied model also its head."""

    def __init__(self, grouped: Matrix) -> None:
        super().__init__()
        self.grouped = grouped

    @property
    def weight(self) -> Tensor:
        return self.grouped.dequantised()

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.grouped.rows(tokens.flatten()).dequantised()
        return rows.view(*tokens.shape, -1)


class GroupedLora(LoraLinear):
    """An adapted map whose frozen matrix stays in groups or in its file."""

    def __init__(self, linear: GroupedLinear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        out, inside = linear.grouped.shape
        self.grouped, self.bias, self.scale = linear.grouped, linear.bias, scale
        self.lora_A, self.lora_B = (
            nn.Parameter(torch.zeros(rank, inside)),
            nn.Parameter(torch.zeros(out, rank)),
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.grouped.dequantised()

    def merged_later(self) -> GroupedLinear:
        """Return one map with the same outputs, whose matrix is merged each time when it is read."""
        return GroupedLinear(Deferred(self.grouped.shape, self._merged), self.bias)

    def _merged(self) -> Tensor:
        return self.merged().weight.detach()


def keep_grouped(model: nn.Module, name: str, matrix: Matrix) -> None:
    """Replace the linear map or embedding whose matrix is called `name` by one that holds it in groups or in its file, in place."""
    path = name.removesuffix(".weight")
    old = model.get_submodule(path)
    new = GroupedLinear(matrix, old.bias) if isinstance(old, nn.Linear) else GroupedEmbedding(matrix)
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def keep_plain(model: nn.Module, name: str) -> None:
    """Undo `keep_grouped` for one matrix: it becomes a parameter in fp32."""
    path = name.removesuffix(".weight")
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, _plain(model.get_submodule(path), None, None))


def matrices(model: nn.Module) -> dict[str, Matrix]:
    """Return every matrix of a model that is no parameter, by its name (`... .weight`)."""
    found = ((name, getattr(module, "grouped", None)) for name, module in model.named_modules())
    return {f"{name}.weight": x for name, x in found if isinstance(x, Grouped | Deferred)}


@torch.no_grad()
def dequantised(
    model: nn.Module, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Replace every module whose matrix is no parameter by an ordinary one with the same weights, in place; each matrix goes to
    `device` in `dtype` before the next is read."""
    for name, module in list(model.named_modules()):
        if isinstance(module, GroupedLinear | GroupedEmbedding | GroupedLora):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _plain(module, device, dtype))
    return model


def _plain(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> nn.Module:
    """An ordinary module with the weights of one whose matrix is no parameter."""
    assert isinstance(module, GroupedLinear | GroupedEmbedding | GroupedLora)
    outs, ins = module.grouped.shape
    weight = nn.Parameter(module.weight.detach().to(device, dtype))
    if isinstance(module, GroupedEmbedding):
        rows = Embedding(outs, ins, device="meta")
        rows.weight = weight
        return rows
    plain = nn.Linear(ins, outs, bias=module.bias is not None, device="meta")
    plain.weight, plain.bias = weight, module.bias
    if not isinstance(module, GroupedLora):
        return plain
    adapted = LoraLinear(plain, len(module.lora_A), module.scale)
    adapted.lora_A, adapted.lora_B = module.lora_A, module.lora_B
    return adapted
