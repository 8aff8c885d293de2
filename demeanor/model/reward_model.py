"""A reward model: a Llama without a vocabulary head and one linear score, read at a completion's last
token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from demeanor.model.llama import Llama
from demeanor.model.tensors import TokenBatch


class RewardModel(nn.Module):
    """Scores completions; saved as a sequence classifier of transformers with one label."""

    def __init__(self, trunk: Llama) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(trunk.config.hidden_size, 1, bias=False)

    @property
    def config(self) -> object:
        return self.trunk.config

    def rewards(self, batch: TokenBatch) -> Tensor:
        """Return one reward per branch, rewards_B, read at its last token."""
        hidden_BD = self.trunk.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.last_B)
        # In bf16, with 8 bits of mantissa, rewards of similar completions would tie.
        with torch.autocast(hidden_BD.device.type, enabled=False):
            return hidden_BD.to(self.score.weight.dtype) @ self.score.weight[0]
