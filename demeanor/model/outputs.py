"""Run a model over a batch of trees and return only what objectives read."""

from __future__ import annotations

from torch import nn

from demeanor.model.foreign import ForeignModel, ForeignReward
from demeanor.model.head import collision, token_logprobs
from demeanor.model.llama import Llama
from demeanor.model.reward import RewardModel
from demeanor.tensors import Outputs, TokenBatch


def policy_outputs(model: nn.Module, batch: TokenBatch, *, with_collision: bool = False) -> Outputs:
    """Log-probs (nats) of every scored token under a policy; `with_collision`: also log sum_v p(v)^2 there."""
    if isinstance(model, ForeignModel):
        return model.outputs(batch, with_collision=with_collision)
    assert isinstance(model, Llama), f"wanted a policy, got {type(model).__name__}"
    hidden_CD = model.hidden(batch.tokens_T, batch.positions_T, batch.segments, batch.scored_C)
    return Outputs(
        logprobs_C=token_logprobs(hidden_CD, model.head(), batch.targets_C),
        collision_C=collision(hidden_CD, model.head()) if with_collision else None,
    )


def reward_outputs(model: nn.Module, batch: TokenBatch) -> Outputs:
    """One reward per branch under a reward model."""
    assert isinstance(model, RewardModel | ForeignReward), (
        f"wanted a reward model, got {type(model).__name__}"
    )
    return Outputs(rewards_B=model.rewards(batch))
