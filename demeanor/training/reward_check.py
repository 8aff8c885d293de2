"""`train --check-rewards`: the rewards of online stages, built from what is trained already and audited.

In: a stack, its runs, services of app.py. Out: one audit a stage. It trains and samples nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from demeanor.core.errors import CheckpointError, UsageError, unknown
from demeanor.core.types import Item, Message, Verdict
from demeanor.data import sources
from demeanor.stack.schema import (
    ItemReward,
    JudgeReward,
    LengthReward,
    ModelReward,
    OnlineStage,
    RepetitionReward,
    RewardTerm,
    RuleReward,
    ScorerReward,
)
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import Template, load_template
from demeanor.training import prompts as asked
from demeanor.training import scoring
from demeanor.training.online_stage import OnlineServices
from demeanor.training.reward_audit import AuditCase, RewardAudit, Write, audit, rollout
from demeanor.training.rewards import Task
from demeanor.training.runs import Runs, weights_folder

PROMPTS, JUDGED = 128, 12
"""Most prompts of a stage; of one with a judge, who compares every pair of a prompt's answers."""
CONTENT = (ModelReward, ItemReward, ScorerReward, RuleReward, JudgeReward)
"""Terms that look at what an answer says."""


class Gold(NamedTuple):
    """What evaluation knows of right answers: that of an item (None: unknown), and whether declining is right."""

    answer: Callable[[Item], str | None]
    declines: Callable[[Item], bool]


def check(
    stack: Stack, runs: Runs, *, only: Sequence[str], services: OnlineServices, gold: Gold
) -> list[RewardAudit]:
    """Audit every online stage, or those in `only`. Raises UsageError if there is none."""
    stages = [stage for stage in stack.spec.weights.stages if isinstance(stage, OnlineStage)]
    names = [stage.name for stage in stages]
    if not stages:
        raise UsageError(
            f"--check-rewards: {stack.path}: no stage has a reward; wanted an online stage, with `prompts` and `reward`"
        )
    for name in only:
        if name not in names:
            raise UsageError(f"--check-rewards: {unknown(name, names, noun='online stage')}")
    return [
        check_stage(stack, runs, stage, services=services, gold=gold)
        for stage in stages
        if not only or stage.name in only
    ]


def check_stage(
    stack: Stack, runs: Runs, stage: OnlineStage, *, services: OnlineServices, gold: Gold
) -> RewardAudit:
    """Audit one stage's reward; terms whose weights or tokenizer are not there yet are left out and named."""
    template = _template(stack, runs)
    names = scoring.names(stage.reward)
    kept, notes = [], []
    for name, term in zip(names, stage.reward):
        if missing := _missing(term, stack, runs, template):
            notes.append(f"{name} is not checked: {missing}")
        else:
            kept.append((name, term))
    terms = [term for _, term in kept]
    judged = any(isinstance(term, JudgeReward) for term in terms)
    chosen = spread(list(cases(stack, stage, services, gold)), JUDGED if judged else PROMPTS)
    if template is not None:
        chosen = [_rendered(case, template) for case in chosen]
    if not terms:
        return RewardAudit(stage.name, len(chosen), (), (), tuple(notes), Verdict.INCONCLUSIVE)
    reward = scoring.build(
        terms,
        services.rewards,
        stack=stack,
        load=scoring.trained_models(stack, runs),
        verdicts=runs.root / "check-rewards.verdicts.jsonl",
    )
    reward = scoring.RewardSum(dict(zip([name for name, _ in kept], reward.terms.values())))
    write = None if template is None else _writer(template)
    notes += _normalised(reward, chosen, write)
    verifiers = [name for name, term in kept if isinstance(term, ItemReward) and term.weight > 0]
    verifiers = verifiers or [n for n, term in kept if isinstance(term, ScorerReward) and term.weight > 0]
    return audit(
        stage.name,
        reward,
        chosen,
        verifies=verifiers,
        judges=[name for name, term in kept if isinstance(term, CONTENT)],
        write=write,
        notes=notes,
    )


def cases(stack: Stack, stage: OnlineStage, services: OnlineServices, gold: Gold) -> Iterator[AuditCase]:
    """The stage's prompts, each once, with what is known to be right: by the item's target, or by the row's answer."""
    found: dict[object, AuditCase] = {}
    for source in stage.prompts:
        if source.items:
            for item in services.generation.items(source.source, stack.root):
                if not source.axes or item.axis in source.axes:
                    task = Task(item.messages, (), item, item.id)
                    case = AuditCase(task, item.axis, gold.answer(item), None, gold.declines(item))
                    found.setdefault((item.messages, item.id), case)
            continue
        for row in sources.rows(source, root=stack.root, want="prompts", say=lambda said: None):
            messages, answer = asked.asked(row), asked.answered(row)
            text = answer[-1].content or None if answer else None  # None: a call of a tool
            found.setdefault(messages, AuditCase(Task(messages, (), None, row.source), source.source, text))
    known = [case for case in found.values() if case.gold is not None and not case.declines]
    for case in found.values():
        yield case._replace(other=_other(case, known))


def _other(case: AuditCase, known: Sequence[AuditCase]) -> str | None:
    """What is right for another prompt of the same axis, and not for this one."""
    if case.gold is None or case.declines:
        return None
    mine = [other for other in known if other.axis == case.axis and other.gold != case.gold]
    return mine[len(case.task.source) % len(mine)].gold if mine else None


def spread(found: Sequence[AuditCase], most: int) -> list[AuditCase]:
    """At most so many cases, in turn of every axis."""
    axes = [[case for case in found if case.axis == axis] for axis in dict.fromkeys(c.axis for c in found)]
    turns = [case for turn in zip_longest(*axes) for case in turn if case is not None]
    return turns[:most]


# ---- what is there before training ----


def _template(stack: Stack, runs: Runs) -> Template | None:
    """The stack's template with the base's tokenizer, None if the base is not trained yet."""
    try:
        folder = weights_folder(stack, runs, "base")
    except CheckpointError:
        return None
    return load_template(stack.spec.template, tokenizers.load(folder), folder=folder, root=stack.root)


def _missing(term: RewardTerm, stack: Stack, runs: Runs, template: Template | None) -> str | None:
    """Why a term cannot be checked before training."""
    if isinstance(term, ModelReward):
        untrained = [name for name in term.stages if not _trained(stack, runs, name)]
        if untrained:
            return f"{', '.join(untrained)} is not trained yet; run demeanor train {stack.path} --stage {untrained[0]}"
    if template is None and isinstance(term, ModelReward | LengthReward | RepetitionReward):
        return (
            f"it counts tokens, and the base is not trained yet; run demeanor train {stack.path} --stage base"
        )
    return None


def _trained(stack: Stack, runs: Runs, stage: str) -> bool:
    try:
        weights_folder(stack, runs, stage)
    except CheckpointError:
        return False
    return True


def _rendered(case: AuditCase, template: Template) -> AuditCase:
    item = case.task.item
    tools = () if item is None else item.tools
    tokens = template.render(case.task.messages, tools, generate=True).tokens
    return case._replace(task=case.task._replace(tokens=tuple(tokens)))


def _writer(template: Template) -> Write:
    """Answers as the template writes them after a prompt, up to the last token that a policy is trained to write."""

    def write(task: Task, text: str) -> tuple[int, ...]:
        tools = () if task.item is None else task.item.tools
        whole = template.render(
            (*task.messages, Message("assistant", text)), tools, trained_from=len(task.messages)
        )
        end = max((i + 1 for i, trained in enumerate(whole.trained) if trained), default=0)
        found = tuple(whole.tokens[len(task.tokens) : end])
        return found or (min(template.stop_tokens),)

    return write


def _normalised(reward: scoring.RewardSum, chosen: Sequence[AuditCase], write: Write | None) -> list[str]:
    """Normalise reward models on right answers, since there is no policy yet whose answers could be measured."""
    shown = [rollout(case.task, case.gold, write) for case in chosen if case.gold is not None]
    told = []
    for name, term in reward.models.items():
        if term.norms:
            continue
        if len(shown) < 2:
            term.norms = dict.fromkeys(term.models, scoring.Normalisation())
            told.append(f"{name} is not normalised here: no right answers are known to measure it on")
        else:
            term.normalise(shown)
            told.append(
                f"{name} is normalised here on {len(shown)} right answers; in training on {term.spec.normalise}"
            )
    return told
