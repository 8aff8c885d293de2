"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): frozen matrices, each with a trained product of two thin ones beside it.

In: a model and the settings of an adapter. Out: the same model, in which only the adapter (and a score head) learns; or, merged,
a plain model again. Parameter names stay: `q_proj.weight` is where it was. It knows no folders.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demeanor.errors import CheckpointError, unknown
from demeanor.spec import Adapter

HEADS = ("lm_head", "embed_out", "score")
"""Linear maps that `all-linear` leaves alone, as PEFT does: the vocabulary's head, and the score (which is trained whole)."""


class LoraLinear(nn.Module):
    """x W^T + b + scale (x A^T) B^T with W and b frozen; A (rank, in) is drawn, B (out, rank) begins at zero."""

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, draw: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        out, inside = linear.weight.shape
        self.lora_A = nn.Parameter(torch.empty(rank, inside))
        self.lora_B = nn.Parameter(torch.zeros(out, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5), generator=draw)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(
            F.linear(x, self.lora_A), self.lora_B
        )

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain linear map with the same outputs."""
        out, inside = self.weight.shape
        linear = nn.Linear(inside, out, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight + self.scale * (self.lora_B @ self.lora_A))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach())
        return linear


def scale(rank: int, alpha: float, rslora: bool) -> float:
    """alpha / rank, or alpha / sqrt(rank). Source of the second: Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def attach(model: nn.Module, adapter: Adapter, seed: int) -> list[str]:
    """Freeze `model` and put adapters beside its target maps, drawn from `seed`; a score head stays trainable.

    Returns the names of the maps. Raises CheckpointError where a target names none.
    """
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    names = chosen(list(linears), adapter.targets)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("score" in name.split("."))
    draw = torch.Generator().manual_seed(seed)
    for name in names:
        _put(
            model,
            name,
            LoraLinear(linears[name], adapter.rank, scale(adapter.rank, adapter.alpha, adapter.rslora), draw),
        )
    return names


def chosen(linears: list[str], targets: tuple[str, ...]) -> list[str]:
    """The linear maps that `targets` means: all but heads, or those whose last name is listed. Raises CheckpointError."""
    body = [name for name in linears if name.rsplit(".", 1)[-1] not in HEADS]
    if targets == ("all-linear",):
        if not body:
            raise CheckpointError(
                "adapter.targets: this model has no torch.nn.Linear to adapt (GPT-2's Conv1D is none); train it whole"
            )
        return body
    known = {name.rsplit(".", 1)[-1] for name in body}
    for target in targets:
        if target not in known:
            raise CheckpointError(
                f"adapter.targets: {unknown(target, known, noun='linear map of this model')}"
            )
    return [name for name in body if name.rsplit(".", 1)[-1] in targets]


def adapters(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Every adapted map of a model with its name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def merge(model: nn.Module) -> nn.Module:
    """Fold every adapter into its matrix, in place; the model is plain again and all of it may be trained."""
    for name, module in list(adapters(model)):
        _put(model, name, module.merged())
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    place, _, last = name.rpartition(".")
    setattr(model.get_submodule(place), last, module)
