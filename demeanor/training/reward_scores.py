"""Rewards of trained reward models for answers of one prompt: where they disagree is what people should look at first.

In: a stack, the folder of runs, stages of reward models, rows with their answers. Out: a reward per stage and answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from demeanor.core.errors import UsageError
from demeanor.core.types import Preference
from demeanor.data.trees import collate, preference_tree
from demeanor.model import checkpoints
from demeanor.model.heads import reward_outputs
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import load_template
from demeanor.training.reference import MICRO_TOKENS, micro_batches
from demeanor.training.runs import Runs, weights_folder


def reward_scores(
    stack: Stack, runs: Runs, stages: Sequence[str], rows: Sequence[Preference]
) -> list[dict[str, tuple[float, ...]]]:
    """Rewards of each row's completions, by stage. Raises UsageError for a stage that is no reward model, CheckpointError
    for one without weights."""
    found: list[dict[str, tuple[float, ...]]] = [{} for _ in rows]
    for stage in stages:
        folder = weights_folder(stack, runs, stage)
        if not checkpoints.is_reward(folder):
            raise UsageError(
                f"{stage}: is no reward model; wanted a stage whose objective is `reward` or `cost`"
            )
        model = checkpoints.reward(folder, 0)
        template = load_template(stack.template, tokenizers.load(folder), folder=folder, root=stack.root)
        trees = [preference_tree(row, template) for row in rows]
        with torch.inference_mode():
            for group in micro_batches(trees, MICRO_TOKENS):
                batch = collate([trees[i] for i in group], read_last=True)
                rewards_B = reward_outputs(model, batch).rewards_B
                assert rewards_B is not None
                given = iter(rewards_B.tolist())
                for i in group:
                    found[i][stage] = tuple(next(given) for _ in trees[i].branches)
    return found
