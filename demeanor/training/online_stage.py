"""An online stage from its declaration to finished weights: prompts, rewards, critic, cost, then the loop.

In: a Stack, a stage, services that app.py gives. Out: the trained policy. It knows no engine and no scorer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from torch import nn

from demeanor.core import hardware, registry
from demeanor.core.errors import DemeanorError
from demeanor.core.files import write_json
from demeanor.core.types import Preference
from demeanor.data.trees import Tree, preference_tree
from demeanor.model import checkpoints
from demeanor.stack.schema import OnlineStage
from demeanor.stack.stack import OBJECTIVES, Stack
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.training import prompts as asked
from demeanor.training import scoring
from demeanor.training import stage as training
from demeanor.training.controllers import Lagrangian
from demeanor.training.generation_eval import GenerationServices
from demeanor.training.iteration import seeds
from demeanor.training.loop import Evaluate
from demeanor.training.online import Constraint, Setup
from demeanor.training.rewards import Roll, Rollout, Task
from demeanor.training.runs import Runs, weights_folder
from demeanor.training.stage import Critic, FrozenPolicy, TrainingRun

NORMALISED_ON = 256  # answers that a reward model is normalised on


class OnlineServices(NamedTuple):
    """What app.py provides, since training knows neither engines nor scorers."""

    roll: Callable[[Stack, OnlineStage, Tokenizer, Template, Path, Path], Roll]
    """From a stage, its run's folder and its parent's weights to what samples its policy."""
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
    roll = services.roll(stack, stage, tokenizer, template, run.folder, parent)
    start = parent if reference is None else reference.folder
    normalise = partial(
        _normalise,
        stage=stage,
        root=stack.root,
        template=template,
        tasks=found.tasks,
        roll=roll,
        reference=start,
    )
    normalise(reward, kept=run.folder / "normalisation.json")
    constraint = None
    if stage.cost is not None:
        cost = build(stage.cost.terms, verdicts=run.folder / "cost-verdicts.jsonl")
        normalise(cost, kept=run.folder / "cost-normalisation.json")
        constraint = Constraint(cost, stage.cost.limit, Lagrangian(stage.cost))
    reads_reference = reference is not None and (online is None or online.reference(settings))

    def critic() -> Critic:
        assert online is not None
        assert online.value_init is not None
        if online.value_init(settings) == "zero":
            return Critic(parent, zero=True)
        best = reward.critic_start()
        if best is None:
            raise DemeanorError(
                f"{stage.name}: objective.value_init: reward wants exactly one reward term of one model, to start "
                "the critic from; write value_init: zero"
            )
        name, norm = best
        return Critic(weights_folder(stack, runs, name), shift=norm.shift, scale=norm.scale)

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


def _normalise(
    reward: scoring.RewardSum,
    *,
    kept: Path,
    stage: OnlineStage,
    root: Path,
    template: Template,
    tasks: Sequence[Task],
    roll: Roll,
    reference: Path,
) -> None:
    """Measure shift and scale of reward models that want it, once in a run: `kept` holds what was measured."""
    if kept.exists():
        reward.load(json.loads(kept.read_text(encoding="utf-8")))
    wants = reward.wants
    if "reference" in wants:
        chosen = tasks[:NORMALISED_ON]
        policy = checkpoints.policy(reference).to(hardware.device())
        rolled = roll(policy, chosen, seeds(stage.seed, -2, len(chosen), -(-NORMALISED_ON // len(chosen))))
        reward.normalise("reference", [rollout for rollouts in rolled for rollout in rollouts])
    if "demonstrations" in wants:
        shown = islice(asked.demonstrations(stage, root), NORMALISED_ON)
        rollouts = [_demonstrated(pair, template) for pair in shown]
        if len(rollouts) < 2:
            raise DemeanorError(
                f"{stage.name}: reward: normalise: demonstrations: its prompts hold {len(rollouts)} answers; wanted "
                "rows with answers in `prompts`, or normalise: reference"
            )
        reward.normalise("demonstrations", rollouts)
    if wants:
        write_json(kept, reward.state())


def _demonstrated(pair: asked.Demonstration, template: Template) -> Rollout:
    """A person's answer as a rollout, for a reward model to read."""
    tree = preference_tree(Preference(pair.prompt, (pair.answer,), (0,)), template)
    (branch,) = tree.branches
    task = Task(pair.prompt, tree.prompt)
    written = branch.trained
    return Rollout(task, branch.tokens, written, (0.0,) * sum(written), pair.answer[-1].content, ended=True)
