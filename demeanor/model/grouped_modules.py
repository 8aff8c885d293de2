"""Modules whose matrix stays in groups: a linear map and an embedding that the compiled decoder multiplies as it is.

In: a `Grouped` matrix and the module that it replaces. Out: a module with the same forward in fp32, which unpacks the
matrix for each call; only the compiled decoder avoids that.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demeanor.model.grouped import Grouped
from demeanor.model.llama import Embedding


class GroupedLinear(nn.Linear):
    """x W^T + b; W is unpacked where it is read."""

    def __init__(self, grouped: Grouped, bias: Tensor | None) -> None:
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

    def __init__(self, grouped: Grouped) -> None:
        super().__init__()
        self.grouped = grouped

    @property
    def weight(self) -> Tensor:
        return self.grouped.dequantised()

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.grouped.rows(tokens.flatten()).dequantised()
        return rows.view(*tokens.shape, -1)


def keep_grouped(model: nn.Module, name: str, grouped: Grouped) -> None:
    """Replace the linear map or embedding whose matrix is called `name` by one that holds it in groups, in place."""
    path = name.removesuffix(".weight")
    old = model.get_submodule(path)
    new = GroupedLinear(grouped, old.bias) if isinstance(old, nn.Linear) else GroupedEmbedding(grouped)
    parent, _, last = path.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def grouped_matrices(model: nn.Module) -> dict[str, Grouped]:
    """Return every matrix of a model that is in groups, by its name (`... .weight`)."""
    found = ((name, getattr(module, "grouped", None)) for name, module in model.named_modules())
    return {f"{name}.weight": x for name, x in found if isinstance(x, Grouped)}


@torch.no_grad()
def dequantised(model: nn.Module) -> nn.Module:
    """Replace every module in groups by an ordinary one with the same weights, in place."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, GroupedLinear | GroupedEmbedding):
            continue
        outs, ins = module.grouped.shape
        plain: nn.Module
        if isinstance(module, GroupedLinear):
            plain = nn.Linear(ins, outs, bias=module.bias is not None, device="meta")
            plain.bias = module.bias
        else:
            plain = Embedding(outs, ins, device="meta")
        plain.weight = nn.Parameter(module.weight)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, plain)
    return model
