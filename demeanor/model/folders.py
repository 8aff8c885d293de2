"""Which model a folder holds, and how it is loaded and written: lean or foreign, policy or reward model, whole or adapter.

In: a folder. Out: a model that `outputs.py` runs; or a folder again. It is the one place where these differences meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import nn

from demeanor.errors import CheckpointError
from demeanor.model import adapter as adapters
from demeanor.model import checkpoint, foreign
from demeanor.model.config import Config, UnsupportedError
from demeanor.model.foreign import ForeignModel, ForeignReward
from demeanor.model.llama import Llama
from demeanor.model.reward import RewardModel
from demeanor.spec import Adapter

Model = Llama | RewardModel | ForeignModel | ForeignReward


@dataclass(frozen=True, slots=True)
class About:
    """What a folder says of itself: its architecture, longest sequence and vocabulary in tokens, and whether the lean forward runs it."""

    model_type: str
    context: int
    vocab_size: int
    lean: bool
    reward: bool


def about(folder: Path) -> About:
    """Describe a folder without loading weights; raises CheckpointError if nothing here can run it."""
    reward = checkpoint.is_reward(folder)
    whole = folder
    while adapters.is_adapter(whole):
        whole = adapters.base_folder(whole)
    try:
        config = Config.load(whole)
        return About(config.model_type, config.max_position_embeddings, config.vocab_size, True, reward)
    except UnsupportedError:
        if not foreign.known(whole):
            raise
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(whole, local_files_only=True)
    context = getattr(found.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise CheckpointError(
            f"{whole / 'config.json'}: {found.model_type} names no max_position_embeddings; it cannot be trained here"
        )
    return About(str(found.model_type), context, int(found.get_text_config().vocab_size), False, reward)


def num_weights(folder: Path) -> int:
    """How many numbers the weights of a folder are, read from the headers of its files."""
    while adapters.is_adapter(folder):
        folder = adapters.base_folder(folder)
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in list(file.keys()))
    return total


def policy(folder: Path) -> Llama | ForeignModel:
    """Load the policy of a folder in fp32; raises CheckpointError."""
    return checkpoint.load(folder) if about(folder).lean else foreign.load(folder)


def serving(folder: Path) -> Llama | ForeignModel:
    """As `policy`, for decoding: an adapter of a lean model is not folded in."""
    return checkpoint.load_apart(folder) if about(folder).lean else foreign.load(folder)


def reward(folder: Path, seed: int) -> RewardModel | ForeignReward:
    """Load the reward model of a folder with its head, or begin one on a policy with a head drawn from `seed`."""
    found = about(folder)
    if found.lean:
        return (
            checkpoint.load_reward(folder)
            if found.reward
            else checkpoint.reward_from(checkpoint.load(folder), seed)
        )
    if found.reward or not adapters.is_adapter(folder):
        return foreign.load_reward(folder, seed)
    raise CheckpointError(
        f"{folder}: a reward model cannot begin on an adapter of a {found.model_type} model; "
        "put a stage {kind: merge, of: [it]} between"
    )


def save(
    model: nn.Module, folder: Path, *, adapter: Adapter | None = None, parent: Path | None = None
) -> None:
    """Write a model whole, or (with `adapter`, on `parent`) only what was trained."""
    if adapter is not None and parent is not None:
        prefix = (
            "trunk."
            if isinstance(model, RewardModel)
            else foreign.PREFIX
            if isinstance(model, ForeignModel | ForeignReward)
            else ""
        )
        adapters.save(
            model,
            adapter,
            parent,
            folder,
            reward=isinstance(model, RewardModel | ForeignReward),
            prefix=prefix,
        )
    elif isinstance(model, ForeignModel | ForeignReward):
        foreign.save(model, folder)
    else:
        checkpoint.save(model, folder)
