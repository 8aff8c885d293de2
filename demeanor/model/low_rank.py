"""A frozen linear map with a trained low-rank product: the module of an adapter.

In: a linear map, a rank, a scale. Out: the sum of both products, or one merged map.
Source: Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraLinear(nn.Module):
    """x W^T + b + scale (x A^T) B^T with W and b frozen; A (rank, in) is random, B (out, rank) starts at
    zero."""

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
        low_rank = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return F.linear(x, self.weight, self.bias) + self.scale * low_rank

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return one plain linear map with the same outputs."""
        out, inside = self.weight.shape
        linear = nn.Linear(inside, out, bias=self.bias is not None, device="meta")
        linear.weight = nn.Parameter(self.weight + self.scale * (self.lora_B @ self.lora_A))
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.detach())
        return linear
