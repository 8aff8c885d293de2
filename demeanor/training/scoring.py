"""Scores rollouts: one column for each term of `reward:` (or of a cost), and their weighted sum.

In: reward terms of a stage, trained reward models, services of app.py. Out: a number for each rollout, None
where a term cannot be scored; metrics by term. It samples nothing and knows no policy, scorer or judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from math import isfinite
from pathlib import Path
from statistics import fmean, pvariance, stdev
from typing import Any, Literal, NamedTuple, Protocol

from torch import nn

from demeanor.core import hardware
from demeanor.core.errors import DemeanorError, Problem, UsageError
from demeanor.core.types import Completion, Item, Messages, Score
from demeanor.data.trees import Branch, Tree
from demeanor.model import checkpoints
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
from demeanor.stack.validate import reward_terms
from demeanor.training import reward_rules
from demeanor.training.generation_eval import repetition, rewards
from demeanor.training.rewards import Rollout, Task
from demeanor.training.runs import Runs, weights_folder


class AnswerPair(NamedTuple):
    """Two answers to one prompt, and what a judge is asked about them."""

    criterion: str
    prompt: Messages
    answers: tuple[str, str]


Prefer = Callable[[Sequence[AnswerPair]], list[float | None]]
"""Shows each pair to a judge in both orders: 1 the first is better, 0 the second, 0.5 the orders disagree."""


class RewardServices(NamedTuple):
    """What app.py provides, since training knows neither scorers nor judges."""

    score: Callable[[Item, Completion], Score]
    """The item's scorer on an answer; its value is None where the answer cannot be scored."""
    wrong: Callable[[Item], str | None]
    """What is wrong with an item's scorer or target; None: nothing."""
    judge: Callable[[Stack, Path], Prefer]
    """The judge of a stack, its verdicts kept in a file. Raises UsageError if the stack declares none."""


class TermScore(NamedTuple):
    """One rollout's score by one term; `unread`: its scorer found no answer in it that could be compared."""

    value: float | None
    unread: bool = False


UNSCORED = TermScore(None)


class Term(Protocol):
    """One scorer of rollouts, in order."""

    def __call__(self, rollouts: Sequence[Rollout], /) -> list[TermScore]: ...


class Normalisation(NamedTuple):
    """A reward model's rewards as (reward - shift) / scale; a critic that starts from it needs the same."""

    shift: float = 0.0
    scale: float = 1.0

    def of(self, reward: float) -> float:
        return (reward - self.shift) / self.scale


# ---- terms ----


class ModelTerm:
    """Trained reward models, each read at a rollout's last token; a group's rollouts share their prompt.

    Each model is normalised on its own before several are combined, because rewards of two models are
    comparable only after a common zero.
    """

    def __init__(self, spec: ModelReward, load: Callable[[str], nn.Module]) -> None:
        self.spec = spec
        self.models = {stage: load(stage) for stage in spec.stages}
        fixed = spec.normalise == "none"
        self.norms: dict[str, Normalisation] = dict.fromkeys(spec.stages, Normalisation()) if fixed else {}

    def __call__(self, rollouts: Sequence[Rollout]) -> list[TermScore]:
        """The combined reward. Raises DemeanorError if it must be normalised and was not."""
        if not self.norms:
            raise DemeanorError(
                f"reward of {', '.join(self.models)}: normalise: {self.spec.normalise}, but no answers were "
                "measured yet; call normalise first"
            )
        members = {stage: self.raw(stage, rollouts) for stage in self.models}
        found = []
        for i in range(len(rollouts)):
            each = [self.norms[stage].of(column[i]) for stage, column in members.items() if i in column]
            found.append(TermScore(self._combined(each)) if each else UNSCORED)
        return found

    def raw(self, stage: str, rollouts: Sequence[Rollout]) -> dict[int, float]:
        """One model's rewards by the rollout's place; rollouts without tokens have none.

        Equal answers to one prompt are scored once, so that rounding never tells them apart.
        """
        groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for i, rollout in enumerate(rollouts):
            prompt, tokens = last_path(rollout)
            if tokens:
                groups.setdefault(prompt, {}).setdefault(tokens, []).append(i)
        trees = [group_tree(prompt, list(answers)) for prompt, answers in groups.items()]
        places = [same for answers in groups.values() for same in answers.values()]
        found = zip(places, rewards(self.models[stage], trees), strict=True)
        return {i: value for same, value in found for i in same}

    def normalise(self, rollouts: Sequence[Rollout]) -> None:
        """Measure shift (and for `reference` scale) on rollouts: the reference's answers, or demonstrations."""
        for stage in self.models:
            found = list(self.raw(stage, rollouts).values())
            if len(found) < 2:
                raise DemeanorError(
                    f"reward of {stage}: normalise: {self.spec.normalise}: got {len(found)} answers that can be "
                    "scored, wanted at least 2"
                )
            scale = stdev(found) if self.spec.normalise == "reference" else 1.0
            if not scale > 0:
                raise DemeanorError(
                    f"reward of {stage}: normalise: reference: all {len(found)} answers have the same reward; "
                    "wanted rewards that differ"
                )
            self.norms[stage] = Normalisation(fmean(found), scale)

    def _combined(self, each: Sequence[float]) -> float:
        if self.spec.combine == "worst":
            return min(each)
        if self.spec.combine == "uncertainty":
            return fmean(each) - self.spec.penalty * pvariance(each)
        return fmean(each)


def last_path(rollout: Rollout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and tokens of the last token sequence of a rollout: what a reward model reads the end of."""
    if rollout.later:
        return rollout.later[-1].prompt, rollout.later[-1].tokens
    return rollout.task.tokens, rollout.tokens


def group_tree(prompt: tuple[int, ...], answers: Sequence[tuple[int, ...]]) -> Tree:
    """The answers to one prompt as a token tree in which every token after the prompt is scored."""
    branches = tuple(Branch(tokens, (True,) * len(tokens)) for tokens in answers)
    return Tree(prompt, branches, ranks=(0,) * len(branches))


def item_term(services: RewardServices, rollouts: Sequence[Rollout]) -> list[TermScore]:
    """The verdict of the environment, or else of each prompt's own item; without both it cannot be scored."""

    def scored(rollout: Rollout) -> TermScore:
        if rollout.score is not None:
            return TermScore(rollout.score)
        item = rollout.task.item
        return UNSCORED if item is None else read_score(services.score(item, completion(rollout)))

    return [scored(rollout) for rollout in rollouts]


def scorer_term(spec: ScorerReward, services: RewardServices, rollouts: Sequence[Rollout]) -> list[TermScore]:
    """One scorer with one target."""
    return [
        read_score(services.score(scorer_item(spec.scorer, spec.target, r.task), completion(r)))
        for r in rollouts
    ]


def rules_term(
    found: reward_rules.RewardRules, services: RewardServices, rollouts: Sequence[Rollout]
) -> list[TermScore]:
    """The weighted sum of propositions; None if one of them cannot be scored."""
    scored = []
    for r in rollouts:
        phi = reward_rules.propositions(found, r.task.messages, r.task.item, completion(r), services.score)
        total = 0.0
        for rule, value in zip(found.rules, phi, strict=True):
            total += rule.weight * (value or 0.0)
        scored.append(UNSCORED if None in phi else TermScore(total))
    return scored


def judge_term(spec: JudgeReward, prefer: Prefer, rollouts: Sequence[Rollout]) -> list[TermScore]:
    """The share of a prompt's other answers that each beats; equal texts tie and are not shown to the judge.

    A pair without a verdict does not count; an answer without any cannot be scored.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, rollout in enumerate(rollouts):
        if rollout.text.strip():
            groups.setdefault(rollout.task.tokens, []).append(i)
    pairs = [pair for group in groups.values() for pair in combinations(group, 2)]
    texts = [rollout.text.strip() for rollout in rollouts]
    asked = [(a, b) for a, b in pairs if texts[a] != texts[b]]
    verdicts = prefer(
        [AnswerPair(spec.criterion, rollouts[a].task.messages, (texts[a], texts[b])) for a, b in asked]
    )
    known: dict[tuple[int, int], float | None] = dict.fromkeys(pairs, 0.5)
    known |= dict(zip(asked, verdicts, strict=True))
    wins: list[list[float]] = [[] for _ in rollouts]
    for (a, b), first in known.items():
        if first is not None:
            wins[a].append(first)
            wins[b].append(1.0 - first)
    return [TermScore(fmean(found)) if found else UNSCORED for found in wins]


def length_term(spec: LengthReward, rollouts: Sequence[Rollout]) -> list[TermScore]:
    """0 up to `free` tokens, then minus the rest as a share of `free`; a stop token is no content."""
    return [TermScore(-max(0, len(content(r)) - spec.free) / spec.free) for r in rollouts]


def repetition_term(rollouts: Sequence[Rollout]) -> list[TermScore]:
    """Minus the share of 3-grams that occurred before."""
    return [TermScore(-repetition(content(r))) for r in rollouts]


def content(rollout: Rollout) -> tuple[int, ...]:
    """The tokens that the policy wrote in all turns, without the stop token at the end."""
    parts = ((rollout.tokens, rollout.written), *((path.tokens, path.written) for path in rollout.later))
    written = tuple(t for tokens, own in parts for t, mine in zip(tokens, own, strict=True) if mine)
    return written[:-1] if rollout.ended else written


def completion(rollout: Rollout) -> Completion:
    """The rollout as scorers read it."""
    reason: Literal["stop", "length"] = "stop" if rollout.ended else "length"
    return Completion(rollout.text, reason, completion_tokens=sum(rollout.written))


def scorer_item(scorer: str, target: Mapping[str, Any], task: Task) -> Item:
    """A task as an item of one scorer."""
    about = task.source or "reward"
    return Item(about, task.messages, scorer, target, axis="reward", cluster=about)


def read_score(score: Score) -> TermScore:
    """A score as a term's; it is `unread` where the value is 0 and the scorer read no answer at all."""
    return TermScore(score.value, unread=score.value == 0 and not score.answer.strip())


# ---- their sum ----


class ScoredRollouts(NamedTuple):
    """The reward of each rollout (None: left out of every baseline), and each term's own unweighted column."""

    total: list[float | None]
    terms: dict[str, list[TermScore]]

    def metrics(self) -> dict[str, float]:
        """`reward`, `reward_std`, and of each term `rewards/NAME/mean`, `std`, and the shares `unscored` and
        `unread`.

        A deviation is of a sample (divided by n - 1), 0 for one. Without a score, mean and std are left out.
        """
        found = moments("reward", "reward_std", self.total)
        found["reward/unscored"] = fmean(x is None for x in self.total) if self.total else 0.0
        for name, column in self.terms.items():
            about = f"rewards/{name}"
            found |= moments(f"{about}/mean", f"{about}/std", [x.value for x in column])
            if column:
                found[f"{about}/unscored"] = fmean(x.value is None for x in column)
                found[f"{about}/unread"] = fmean(x.unread for x in column)
        return found


def moments(mean: str, deviation: str, values: Sequence[float | None]) -> dict[str, float]:
    """Mean and sample deviation of the values that are known, under these two names."""
    known = [x for x in values if x is not None]
    return {mean: fmean(known), deviation: stdev(known) if len(known) > 1 else 0.0} if known else {}


class RewardSum:
    """The weighted sum of a stage's reward terms, with the normalisation of its reward models."""

    def __init__(self, terms: Mapping[str, tuple[float, Term]]) -> None:
        self.terms = dict(terms)

    def __call__(self, rollouts: Sequence[Rollout]) -> ScoredRollouts:
        """Score rollouts, in order. One that failed, or that a term cannot score, has no reward.

        Raises DemeanorError for a score that is not a finite number, since every baseline would be none either.
        """
        whole = [i for i, rollout in enumerate(rollouts) if rollout.error is None]
        columns: dict[str, list[TermScore]] = {}
        for name, (_, term) in self.terms.items():
            column = [UNSCORED] * len(rollouts)
            for i, found in zip(whole, term([rollouts[i] for i in whole]), strict=True):
                if found.value is not None and not isfinite(found.value):
                    raise DemeanorError(
                        f"reward {name}: got {found.value} for the answer {rollouts[i].text[:80]!r} to "
                        f"{rollouts[i].task.source or 'a prompt'}; wanted a finite number, or None where an answer "
                        "cannot be scored"
                    )
                column[i] = found
            columns[name] = column
        return ScoredRollouts([self._sum(row) for row in zip(*columns.values(), strict=True)], columns)

    def _sum(self, row: Sequence[TermScore]) -> float | None:
        total = 0.0
        for (weight, _), found in zip(self.terms.values(), row, strict=True):
            if found.value is None:
                return None
            total += weight * found.value
        return total

    def total(self, rollouts: Sequence[Rollout]) -> list[float | None]:
        """The sums alone: a `Reward`."""
        return self(rollouts).total

    @property
    def models(self) -> dict[str, ModelTerm]:
        """The terms that are reward models."""
        return {name: term for name, (_, term) in self.terms.items() if isinstance(term, ModelTerm)}

    @property
    def wants(self) -> set[str]:
        """Answers on which reward models must still be normalised: `reference`, `demonstrations`."""
        return {term.spec.normalise for term in self.models.values() if not term.norms}

    def normalise(self, kind: Literal["reference", "demonstrations"], rollouts: Sequence[Rollout]) -> None:
        """Measure shift and scale of the reward models that want these answers."""
        for term in self.models.values():
            if term.spec.normalise == kind:
                term.normalise(rollouts)

    def critic_start(self) -> tuple[str, Normalisation] | None:
        """The one reward model a critic can start from, with the weight of its term in shift and scale.

        None if there is no term of exactly one model, or several: then nothing predicts the sum.
        """
        single = [(name, term) for name, term in self.models.items() if len(term.models) == 1]
        if len(single) != 1 or len(self.models) != 1:
            return None
        name, term = single[0]
        weight, (stage,) = self.terms[name][0], term.models
        return (
            (stage, Normalisation(term.norms[stage].shift, term.norms[stage].scale / weight))
            if weight
            else None
        )

    def state(self) -> dict[str, dict[str, list[float]]]:
        """Shift and scale of every reward model, as JSON: a resumed run must not measure them again."""
        return {
            name: {stage: list(norm) for stage, norm in term.norms.items()}
            for name, term in self.models.items()
        }

    def load(self, state: Mapping[str, Mapping[str, Sequence[float]]]) -> None:
        """Continue with the normalisation of `state`."""
        for name, norms in state.items():
            self.models[name].norms = {stage: Normalisation(*norm) for stage, norm in norms.items()}


# ---- building ----


def build(
    terms: Sequence[RewardTerm],
    services: RewardServices,
    *,
    stack: Stack,
    load: Callable[[str], nn.Module],
    verdicts: Path,
) -> RewardSum:
    """The sum of a stage's reward terms; `load` gives a reward stage's model, `verdicts` keeps the judge's.

    Raises UsageError for a scorer, target or file that cannot be used.
    """
    if mistakes := [text for term in terms for text in wrong(term, services, stack)]:
        raise UsageError(f"reward: {'; '.join(mistakes)}")

    def made(term: RewardTerm) -> Term:
        match term:
            case ModelReward():
                return ModelTerm(term, load)
            case ItemReward():
                return partial(item_term, services)
            case ScorerReward():
                return partial(scorer_term, term, services)
            case RuleReward():
                return partial(rules_term, reward_rules.read(stack.root / term.rules), services)
            case JudgeReward():
                return partial(judge_term, term, services.judge(stack, verdicts))
            case LengthReward():
                return partial(length_term, term)
            case RepetitionReward():
                return repetition_term

    return RewardSum({name: (term.weight, made(term)) for name, term in zip(names(terms), terms)})


def trained_models(stack: Stack, runs: Runs) -> Callable[[str], nn.Module]:
    """A function from a reward stage to its trained model, loaded once and frozen."""
    loaded: dict[str, nn.Module] = {}

    def load(stage: str) -> nn.Module:
        if stage not in loaded:
            model = checkpoints.reward(weights_folder(stack, runs, stage), 0).to(hardware.device())
            loaded[stage] = model.eval().requires_grad_(False)
        return loaded[stage]

    return load


def names(terms: Sequence[RewardTerm]) -> list[str]:
    """A name for each term's metrics: its kind; where a kind occurs twice, with what it scores by, then a
    number."""
    kinds = [term.kind for term in terms]
    found: list[str] = []
    for term in terms:
        name = term.kind if kinds.count(term.kind) == 1 else ".".join([term.kind, *_detail(term)])
        number = sum(other.partition("#")[0] == name for other in found) + 1
        found.append(name if number == 1 else f"{name}#{number}")
    return found


def _detail(term: RewardTerm) -> Iterator[str]:
    match term:
        case ModelReward():
            yield "+".join(term.stages)
        case ScorerReward():
            yield term.scorer
        case RuleReward():
            yield Path(term.rules).stem


def problems(stack: Stack, services: RewardServices) -> list[Problem]:
    """Every mistake in the reward and cost terms of a stack, with its place; found before anything is trained."""
    found = []
    for i, stage in enumerate(stack.spec.weights.stages):
        if isinstance(stage, OnlineStage):
            for place, term in reward_terms(stage).items():
                where = f"{stack.path}: weights.stages[{i}].{place}"
                found += [Problem(where, what) for what in wrong(term, services, stack)]
    return found


def wrong(term: RewardTerm, services: RewardServices, stack: Stack) -> list[str]:
    """What is wrong with a term: an unknown scorer, a target, a file of rules, no judge."""
    match term:
        case ScorerReward():
            mistake = services.wrong(scorer_item(term.scorer, term.target, Task((), ())))
            return [mistake] if mistake else []
        case RuleReward():
            return reward_rules.mistakes(stack.root / term.rules, services.wrong)
        case JudgeReward() if stack.spec.evaluation.judge is None:
            return [
                "the stack declares no judge; set evaluation.judge to its server and model, "
                "such as {url: http://127.0.0.1:8000/v1, model: NAME}"
            ]
        case _:
            return []
