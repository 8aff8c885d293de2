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

    def values(self, batch: TokenBatch) -> Tensor:
        """Return one value per scored token, values_C, read at the position that predicts it."""
        hidden_CD = self.trunk.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
        with torch.autocast(hidden_CD.device.type, enabled=False):
            return hidden_CD.to(self.score.weight.dtype) @ self.score.weight[0]


class ActorCritic(nn.Module):
    """A policy and the critic that is trained with it; the critic speaks on the scale of normalised rewards.

    A value is (score - shift) / scale, so that a critic that starts as the reward model starts with the same
    shift and scale as the reward itself.
    """

    def __init__(
        self, policy: nn.Module, critic: RewardModel, shift: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
        self.shift, self.scale = shift, scale

    def values(self, batch: TokenBatch) -> Tensor:
        """Return one value per scored token, values_C."""
        return (self.critic.values(batch) - self.shift) / self.scale
