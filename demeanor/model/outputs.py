"""Run a model over a batch of trees and return only what objectives read."""

from __future__ import annotations

from torch import nn

from demeanor.model.head import token_logprobs
from demeanor.model.llama import Llama
from demeanor.model.reward import RewardModel
from demeanor.tensors import Outputs, TokenBatch


def policy_outputs(model: nn.Module, batch: TokenBatch) -> Outputs:
    """Log-probs (nats) of every scored token under a policy."""
    assert isinstance(model, Llama), f"wanted a policy, got {type(model).__name__}"
    hidden_CD = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
    return Outputs(logprobs_C=token_logprobs(hidden_CD, model.head(), batch.targets_C))


def reward_outputs(model: nn.Module, batch: TokenBatch) -> Outputs:
    """One reward per branch under a reward model."""
    assert isinstance(model, RewardModel), f"wanted a reward model, got {type(model).__name__}"
    return Outputs(rewards_B=model.rewards(batch))
