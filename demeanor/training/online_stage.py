"""An online stage from its declaration to finished weights: prompts, rewards, critic, cost, then the loop.

In: a Stack, a stage, services that app.py gives. Out: the trained policy. It knows no engine and no scorer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from demeanor.core import registry
from demeanor.core.errors import DemeanorError
from demeanor.core.files import write_json
from demeanor.core.types import Completion, Item, Messages
from demeanor.data.trees import Tree, preference_tree
from demeanor.core.types import Preference
from demeanor.model import checkpoints
from demeanor.model.reward_model import RewardModel
from demeanor.stack.schema import CostSpec, OnlineStage
from demeanor.stack.stack import OBJECTIVES, Stack
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training import prompts as asked
from demeanor.training import scoring
from demeanor.training import stage as training
from demeanor.training.controllers import Lagrangian
from demeanor.training.generation_eval import GenerationServices
from demeanor.training.loop import Evaluate, ForwardFn
from demeanor.training.online import Constraint, Setup, seeds
from demeanor.training.rewards import Roll, Rollout, Task
from demeanor.training.runs import Runs, note
from demeanor.training.stage import Critic, FrozenPolicy, TrainingRun

NORMALISED_ON = 256  # answers that a reward model is normalised on


class OnlineServices(NamedTuple):
    """What app.py provides, since training knows neither engines nor scorers."""

    roll: Callable[[Stack, OnlineStage, Tokenizer, Template], Roll]
    rewards: scoring.RewardServices
    generation: GenerationServices


def train(
    stack: Stack,
    runs: Runs,
    stage: OnlineStage,
    run: TrainingRun,
    *,
    tokenizer: Tokenizer,
    template: Template,
    parent: Path,
    reference: FrozenPolicy | None,
    ptx: Sequence[Tree],
    probe: Callable[[Sequence[Tree], Path, Callable[[str], None]], Evaluate | None] | None,
    services: OnlineServices,
) -> nn.Module:
    """Train an online stage in a run that is locked, and return its policy.

    Raises DataError if no prompt fits, UsageError for a reward that cannot be computed.
    """
    objective = registry.entry(OBJECTIVES, stack.objective_kind(stage.name))
    settings, online = stack.objectives[stage.name], objective.ONLINE
    about = checkpoints.checkpoint_info(parent)
    found = asked.prompts(
        stage, template, root=stack.root, context=about.context, items=services.generation.items
    )
    say = run.display.say
    left = f", {found.too_long} too long" if found.too_long else ""
    say(f"{len(found.tasks)} prompts, {len(found.held_out)} held out{left}")
    load = scoring.trained_models(stack, runs)
    build = partial(scoring.build, services=services.rewards, stack=stack, load=load)
    reward = build(stage.reward, verdicts=run.folder / "verdicts.jsonl")
    roll = services.roll(stack, stage, tokenizer, template)
    _normalise(reward, run, "normalisation.json", partial(_answers, stage, found.tasks, roll, parent, reference), stack, template)
    constraint = None
    if stage.cost is not None:
        cost = build(stage.cost.terms, verdicts=run.folder / "cost-verdicts.jsonl")
        constraint = Constraint(cost, stage.cost.limit, Lagrangian(stage.cost))
    reads_reference = reference is not None and (online is None or online.reference(settings))

    def critic() -> Critic:
        assert online is not None and online.value_init is not None
        if online.value_init(settings) == "zero":
            return Critic(parent, zero=True)
        start = reward.critic_start()
        if start is None:
            raise DemeanorError(
                f"{stage.name}: objective.value_init: reward wants exactly one reward term of one model, to start "
                "the critic from; write value_init: zero"
            )
        name, norm = start
        return Critic(training.weights_folder(stack, runs, name), shift=norm.shift, scale=norm.scale)

    held = [Tree(task.tokens, (), source=task.source) for task in found.held_out]
    setup = partial(
        Setup,
        stage=stage,
        objective=objective,
        settings=settings,
        tasks=found.tasks,
        roll=roll,
        score=reward,
        ptx=ptx,
        constraint=constraint,
        refused=services.generation.refused,
        probe=None if probe is None else probe(held, run.folder, say),
    )
    return training.train_online(
        stage,
        run,
        setup,
        parent=parent,
        reference=reference if reads_reference else None,
        critic=critic if online is not None and online.critic else None,
        held_out=found.held_out,
    )
