"""Preallocated keys and values of running sequences: one tensor pair per layer, one row per slot.

In: a shape, how many slots of how many tokens. Out: places to write to and views to read. It knows no request.
"""

from __future__ import annotations

import torch
from torch import Tensor

from demeanor.model.config import Config


class KVCache:
    """Keys and values, per layer (slots, kv heads, tokens, head dim)."""

    def __init__(
        self,
        config: Config,
        num_slots: int,
        max_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        shape = (num_slots, config.num_key_value_heads, max_tokens, config.head_dim)
        self.num_slots, self.max_tokens = num_slots, max_tokens
        self.keys: list[Tensor] = [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)
        ]
        self.values: list[Tensor] = [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes it may come to hold."""
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of one slot to another (a shared prefix)."""
        for x in (*self.keys, *self.values):
            x[target, :, :tokens] = x[source, :, :tokens]
