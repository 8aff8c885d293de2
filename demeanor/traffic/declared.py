"""What is wrong with the declarations of live traffic in a stack: names, scorers, records. It runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from demeanor.core.errors import Problem, UsageError, unknown
from demeanor.core.types import Item, Message
from demeanor.evaluation.items import JUDGED, READ, wrong_target
from demeanor.layers import record
from demeanor.stack.serving_schema import EvaluatorSpec, ShadowSpec
from demeanor.stack.stack import Stack, digest


def problems(stack: Stack) -> list[Problem]:
    """Every mistake in `serve.experiments`, `serve.shadows` and `serve.evaluators`."""
    spec, where = stack.spec.serve, f"{stack.path}: serve"
    if not (spec.experiments or spec.shadows or spec.evaluators):
        return []
    found: list[Problem] = []
    for what in ("experiments", "shadows", "evaluators"):
        names = [each.name for each in getattr(spec, what)]
        twice = sorted({name for name in names if names.count(name) > 1})
        found += [Problem(f"{where}.{what}", f"'{name}' stands twice; names are unique") for name in twice]
    if database_of(stack) is None:
        what = "they need recorded turns: make `- kind: record` the first of the layers"
        found.append(Problem(f"{where}: experiments, shadows, evaluators", what))
    for i, experiment in enumerate(spec.experiments):
        here = f"{where}.experiments[{i}]"
        for j, arm in enumerate(experiment.arms):
            found += _variant(stack, arm.model, arm.stack, f"{here}.arms[{j}]")
        score = experiment.score
        if score.scorer is not None:
            found += _scorer(score.scorer, score.target, f"{here}.score", judge=None)
        if score.evaluator is not None and score.evaluator not in (
            known := [e.name for e in spec.evaluators]
        ):
            found.append(
                Problem(f"{here}.score.evaluator", unknown(score.evaluator, known, noun="evaluator"))
            )
    for i, shadow in enumerate(spec.shadows):
        here = f"{where}.shadows[{i}]"
        found += _variant(stack, shadow.model, shadow.stack, here)
        if shadow.scorer is not None:
            found += _scorer(shadow.scorer, shadow.target, here, judge=None)
        elif shadow.target:
            found.append(Problem(f"{here}.target", "is for a `scorer`; name one"))
    for i, evaluator in enumerate(spec.evaluators):
        here = f"{where}.evaluators[{i}]"
        found += _scorer(evaluator.scorer, evaluator.target, here, judge=stack.spec.evaluation.judge)
        for j, model in enumerate(evaluator.models):
            found += _variant(stack, model, None, f"{here}.models[{j}]", at="")
    return found


def _variant(stack: Stack, model: str, other: str | None, here: str, at: str = ".model") -> list[Problem]:
    if other is not None:
        path = stack.root / other
        if path.is_file():
            return []  # its variants are known when it is loaded
        return [
            Problem(
                f"{here}.stack", f"{path}: no such file; wanted a stack file, from the folder of this one"
            )
        ]
    try:
        stack.resolve(model)
    except UsageError as error:
        return [Problem(f"{here}{at}", str(error))]
    return []


def _scorer(name: str, target: Mapping[str, Any], here: str, *, judge: object) -> list[Problem]:
    """What is wrong with a scorer of live turns; `judge`: the judge of the stack, where one may be asked."""
    if name in READ:
        what = f"scorer {name} reads log-probabilities of given texts; a live turn has none"
        return [Problem(f"{here}.scorer", what)]
    if name == JUDGED and judge is None:
        what = (
            "scorer judged needs `evaluation.judge`, and an entry of serve.evaluators; an experiment names that as "
            "`score: {kind: evaluator, evaluator: NAME}`"
        )
        return [Problem(f"{here}.scorer", what)]
    if name == JUDGED and target.get("turns"):
        return [Problem(f"{here}.target.turns", "a live turn has one answer; leave it out")]
    item = Item("live", (Message("user", "-"),), name, target, "live", "live")
    wrong = wrong_target(item)
    return [] if wrong is None else [Problem(f"{here}.scorer", wrong)]


def database_of(stack: Stack) -> str | None:
    """The database of the record layer outside of all layers that change answers; None without one."""
    outer = takewhile(lambda layer: not layer.behaviour, stack.layers)
    return next((layer.spec.database for layer in outer if isinstance(layer.spec, record.Spec)), None)


def version(spec: ShadowSpec | EvaluatorSpec, about: Sequence[str]) -> str:
    """The hash of what a shadow or an evaluator measures, without how often; `about`: keys of what it asks."""
    dropped = {"budget", "share", "drift", "models"}
    return digest({"declared": spec.model_dump(mode="json", exclude=dropped), "about": list(about)})
