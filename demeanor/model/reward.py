"""A reward model: a trunk without a vocabulary head and one linear score, read at a completion's last token."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from demeanor.model.llama import Llama
from demeanor.tensors import TokenBatch


class RewardModel(nn.Module):
    """Scores completions; saved as transformers' sequence classification with one label."""

    def __init__(self, trunk: Llama) -> None:
        super().__init__()
        self.trunk = trunk
        self.score = nn.Linear(trunk.config.hidden_size, 1, bias=False)

    @property
    def config(self) -> object:
        return self.trunk.config

    def rewards(self, batch: TokenBatch) -> Tensor:
        """One reward per branch, rewards_B, read at its last token."""
        hidden_TD = self.trunk.hidden(batch.tokens_T, batch.positions_T, batch.segments)
        return cast(Tensor, self.score(hidden_TD[batch.last_B])).squeeze(-1).to(torch.promote_types(hidden_TD.dtype, torch.float32))
