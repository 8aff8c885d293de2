"""One stage of a stack, from its parent's folder to its own finished Hugging Face folder; and the base itself, from nothing.

In: what build.py hands over (specs, trees, an objective's module, folders). Out: `runs/<key>/model`. Whatever of it already
exists is reused or resumed. It refuses to know text, templates and worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from demeanor import hardware
from demeanor.data.packing import pack_rows
from demeanor.data.schedule import Schedule
from demeanor.data.show import within
from demeanor.data.trees import Tree
from demeanor.model import checkpoint as models
from demeanor.model.outputs import policy_outputs, reward_outputs
from demeanor.objectives import sft
from demeanor.spec import Scratch, Stage
from demeanor.train import heldout
from demeanor.train.coverage import coverage
from demeanor.train.lineage import Runs
from demeanor.train.loop import Judge, Run, fit
from demeanor.train.progress import Progress
from demeanor.train.reference import reference_logprobs, trees_key

REFERENCE = "reference"


def train_stage(stage: Stage, objective: ModuleType, settings: Any, *, key: str, parent: Path,
                roles: Mapping[str, tuple[str, Path]], trees: Callable[[], Sequence[Tree]], runs: Runs, record: Mapping[str, Any],
                copy: Callable[[Path], object], watch: Callable[[str], Progress] = Progress,
                checkpoint_every_s: float = 20.0, fp32: bool = False) -> Path:
    """Train one stage and return its model folder; nothing is loaded if that exists already.

    `parent` is the folder its weights start from, `roles` gives (key, folder) of each frozen ancestor, `trees` makes the
    rows, `copy` puts the tokenizer's files into a folder. Raises DataError if no token carries loss.
    """
    if runs.complete(key):
        return runs.model(key)
    with runs.begin(key, record) as folder:
        rewards = objective.READS == "rewards"
        run: Run = reward_outputs if rewards else policy_outputs
        policy = models.load(parent)
        model: nn.Module = models.reward_from(policy, stage.seed) if rewards else policy
        model.to(hardware.device())
        display = watch(stage.name)
        every = trees()
        rows = within(every, stage.max_tokens or policy.config.max_position_embeddings, stage.name)
        kept, held = heldout.split(rows)
        display.say(coverage(stage.name, rows, rewards=rewards, left_out=len(every) - len(rows), held_out=len(held)))
        reference = None
        if REFERENCE in objective.ROLES:
            ancestor, where = roles[REFERENCE]
            reference = reference_logprobs(lambda: models.load(where), policy_outputs, rows, folder=folder,
                                           model_key=ancestor, data_key=trees_key(rows), fp32=fp32)
        judge: Judge = partial(objective.loss, settings)
        unseen, unseen_reference = chosen(held, rows, reference)
        evaluate = heldout.evaluator(run, judge, unseen, unseen_reference, read_last=rewards, fp32=fp32)
        seen, seen_reference = chosen(kept, rows, reference)
        schedule = Schedule(seen, batch_rows=stage.batch_rows, epochs=stage.epochs, seed=stage.seed)
        fit(model, run, judge, seen, schedule, stage.optim, out=folder, watch=display, read_last=rewards,
            reference=seen_reference, checkpoint_every_s=checkpoint_every_s, evaluate=evaluate, fp32=fp32)
        return _finish(model, runs, key, copy)


def pretrain(base: Scratch, *, key: str, documents: Callable[[], Iterable[list[int]]], vocab_size: int, runs: Runs,
             record: Mapping[str, Any], copy: Callable[[Path], object], watch: Callable[[str], Progress] = Progress,
             checkpoint_every_s: float = 20.0, fp32: bool = False) -> Path:
    """Train a base from random weights on packed rows of `documents` (token ids) and return its model folder."""
    if runs.complete(key):
        return runs.model(key)
    with runs.begin(key, record) as folder:
        rows = pack_rows(documents(), base.row_tokens, base.tokens, base.seed)
        display = watch("base")
        display.say(coverage("base", rows, rewards=False))
        schedule = Schedule(rows, batch_rows=base.batch_rows, epochs=1.0, seed=base.seed)
        model = models.create(base.model, vocab_size, base.seed).to(hardware.device())
        fit(model, policy_outputs, partial(sft.loss, sft.Spec()), rows, schedule, base.optim, out=folder, watch=display,
            read_last=False, checkpoint_every_s=checkpoint_every_s, fp32=fp32)
        return _finish(model, runs, key, copy)


def chosen(indices: Sequence[int], rows: Sequence[Tree],
           reference: Sequence[Sequence[float]] | None) -> tuple[list[Tree], list[Sequence[float]] | None]:
    """The trees at `indices` and, where there are any, their reference log-probs."""
    return [rows[i] for i in indices], None if reference is None else [reference[i] for i in indices]


def _finish(model: Any, runs: Runs, key: str, copy: Callable[[Path], object]) -> Path:
    part = runs.part(key)
    models.save(model, part)
    copy(part)
    return runs.finish(key)
