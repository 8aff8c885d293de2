"""Settings of other trainers in a stack file: the error says what they are called here, with the line to write.

In: the problems of a stack file. Out: the same, with the place of every setting that belongs elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from demeanor.core import registry
from demeanor.core.errors import Problem
from demeanor.core.registry import Spec
from demeanor.stack.schema import Adapter, OnlineStage, Optim, RolloutsSpec, Source, Stage

ELSEWHERE = {  # settings of other trainers, and what says the same here
    "learning_rate": "optim.lr",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_rows",
    "batch_size": "batch_rows",
    "max_length": "max_tokens",
    "max_seq_length": "max_tokens",
    "warmup_ratio": "optim.warmup",
    "max_grad_norm": "optim.clip_norm",
    "lr_scheduler_type": "optim.schedule",
    "lora_r": "adapter.rank",
    "r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "target_modules": "adapter.targets",
    "loss_type": "objective.kind",
    "train_file": "data",
    "dataset_name": "data",
    "ref_model": "uses.reference",
}
ELSEWHERE_ONLINE = {  # the same, of a stage with prompts; docs/from-trl.md has all of them
    "num_generations": "rollouts.count",
    "max_completion_length": "rollouts.max_tokens",
    "num_iterations": "inner_epochs",
    "beta": "objective.kl_coef",
    "epsilon": "objective.clip_low",
    "epsilon_high": "objective.clip_high",
    "scale_rewards": "objective.std",
    "reward_funcs": "reward",
}
NEEDLESS = {
    "gradient_accumulation_steps": "batch_rows is the rows of a step, and micro-batches never change the result",
    "gradient_checkpointing": "here recompute, of a training stage; null turns it on where memory needs it",
    "bf16": "the number format is no setting of a stack",
    "fp16": "the number format is no setting of a stack",
}


def at_stages(problems: Sequence[Problem], raw: Any) -> list[Problem]:
    """Return the problems with the place of every setting that stands at a stage and belongs elsewhere."""
    found = []
    for problem in problems:
        match = re.search(r"weights\.stages\[(\d+)\]\.(\w+)$", problem.where)
        if match is not None and problem.what.startswith("unknown setting"):
            hint = _place(raw["weights"]["stages"][int(match[1])], match[2])
            if hint is not None:
                problem = Problem(problem.where, f"unknown setting '{match[2]}' of a stage. {hint}")
        found.append(problem)
    return found


def _place(stage: Any, name: str) -> str | None:
    """Return where a setting belongs that a stage does not have, with the line to write."""
    if name in NEEDLESS:
        return f"Leave it out: {NEEDLESS[name]}"
    given, objective = stage[name], stage.get("objective")
    value = given if isinstance(given, str) else json.dumps(given)
    kind = objective.get("kind") if isinstance(objective, dict) else None
    known = kind in registry.known("demeanor.objectives")
    if known and name in registry.spec_of("demeanor.objectives", str(kind)).model_fields:
        return f"It belongs to the objective: objective: {{kind: {kind}, {name}: {value}}}"
    parts: dict[str, type[Spec]] = {"optim": Optim, "adapter": Adapter, "data": Source}
    elsewhere = ELSEWHERE
    if "prompts" in stage:
        parts, elsewhere = {**parts, "rollouts": RolloutsSpec}, {**ELSEWHERE, **ELSEWHERE_ONLINE}
    nested = next((f"{part}.{name}" for part, spec in parts.items() if name in spec.model_fields), None)
    path = elsewhere.get(name, nested)
    if path is None:
        return None
    part, _, inner = path.partition(".")
    written = f"{part}: {{{inner}: {value}}}" if inner else f"{part}: {value}"
    return f"{'It belongs to' if inner else 'Here it is called'} {part}: {written}".replace(
        f"called {part}: ", "called: "
    )


def in_objective(problem: Problem, stage: Stage) -> Problem:
    """The problem with our name of a setting, where TRL's stands in the objective of an online stage."""
    name = problem.where.rsplit(".", 1)[-1]
    path = ELSEWHERE_ONLINE.get(name) if isinstance(stage, OnlineStage) else None
    if path is None or not problem.what.startswith("unknown setting"):
        return problem
    part, _, inner = path.partition(".")
    known = registry.spec_of("demeanor.objectives", str(stage.objective["kind"])).model_fields
    if part == "objective" and inner not in known:
        return problem
    value = json.dumps(stage.objective[name])
    written = f"{part}: {{{inner}: {value}}}" if inner else f"{part}: {value}"
    return Problem(problem.where, f"unknown setting '{name}'. Here it is called: {written}")
