"""Fits the weights of reward rules on answers that people graded, so that better answers score higher.

In: rules, rows of prompt, completion and grade, a function that scores. Out: weights, and how often they order
two answers to one prompt as the grades do, on prompts left out of the fit.
Source: Mu et al. 2024, arXiv 2411.01111, equation 1: mean over pairs of max(0, 1 - (R(better) - R(worse))).
Differs from the paper: a penalty on the sum of |weight|, without which separable grades have no unique weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy
import yaml

from demeanor.core.errors import DataError
from demeanor.core.files import write_text
from demeanor.core.intervals import wilson
from demeanor.core.types import Completion, Example, Item, Messages, Score
from demeanor.data import readers
from demeanor.data.rows import parse
from demeanor.training.reward_rules import Proposition, RewardRules, propositions

Floats = npt.NDArray[np.float64]
GRADES = {"bad": 0.0, "less good": 1.0, "ideal": 2.0}
PENALTY = 0.01
FOLDS = 5


class GradedAnswer(NamedTuple):
    """One answer to a prompt with its grade (higher is better), what a reward model gives it, and its axis."""

    prompt: Messages
    answer: str
    grade: float
    reward: float = 0.0
    axis: str = ""


class Accuracy(NamedTuple):
    """Share of pairs ordered as the grades do, and Wilson's 95% interval with n = prompts."""

    value: float
    low: float
    high: float
    pairs: int
    prompts: int


@dataclass(frozen=True, slots=True)
class RuleFit:
    """The rules with fitted weights, accuracies, the mean of each proposition by grade, and rows left out."""

    rules: RewardRules
    fitted: Accuracy
    left_out: Accuracy | None
    means: dict[float, tuple[float, ...]]
    unscored: int


def read_graded(path: Path) -> list[GradedAnswer]:
    """Read rows of `prompt`, `completion`, `grade`, and if wanted `reward` and `axis`. Raises DataError with the
    place."""
    found = []
    for where, row in readers.raw_rows(path, None):
        try:
            found.append(_graded(row))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from None
    if not found:
        raise DataError(f"{path}: has no rows; wanted prompt, completion and grade")
    return found


def _graded(row: Any) -> GradedAnswer:
    if not isinstance(row, dict):
        raise ValueError("wanted an object with prompt, completion and grade")
    example = parse({k: row[k] for k in ("prompt", "completion") if k in row}, "examples", "")
    if not isinstance(example, Example) or len(example.messages) == example.trained_from:
        raise ValueError("wanted the columns prompt, completion and grade")
    prompt, answer = example.messages[: example.trained_from], example.messages[-1].content
    reward = _number(row.get("reward", 0.0), "reward", "a number")
    return GradedAnswer(prompt, answer, _grade(row.get("grade")), reward, str(row.get("axis", "")))


def _grade(value: Any) -> float:
    if isinstance(value, str) and value.strip().lower() in GRADES:
        return GRADES[value.strip().lower()]
    return _number(value, "grade", f"{', '.join(GRADES)}, or a number (higher is better)")


def _number(value: Any, name: str, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: got {value!r}, wanted {wanted}")
    return float(value)


def fit(
    found: RewardRules, answers: Sequence[GradedAnswer], score: Callable[[Item, Completion], Score]
) -> RuleFit:
    """Fit all weights at once. Raises DataError if no prompt has two answers of different grades."""
    features = [_features(found, answer, score) for answer in answers]
    kept = [(answer, phi) for answer, phi in zip(answers, features) if phi is not None]
    pairs = list(_pairs(kept))
    if not pairs:
        raise DataError(
            f"{len(answers)} graded answers: no prompt has two of different grades that every rule can score; "
            "wanted at least one pair to learn from"
        )
    gaps_PK, margins_P = np.array([p.gap for p in pairs]), np.array([p.margin for p in pairs])
    prompts = [p.prompt for p in pairs]
    weights_K = hinge_weights(gaps_PK, margins_P)
    rules = tuple(
        rule.model_copy(update={"weight": round(float(w), 6) + 0.0})
        for rule, w in zip(found.rules, weights_K)
    )
    grades = sorted({answer.grade for answer, _ in kept})
    means = {
        grade: tuple(np.mean([phi for answer, phi in kept if answer.grade == grade], axis=0).tolist())
        for grade in grades
    }
    right_P = gaps_PK @ weights_K + margins_P > 0
    return RuleFit(
        RewardRules(rules=rules),
        _accuracy(right_P, prompts),
        _cross_validated(gaps_PK, margins_P, prompts),
        means,
        len(answers) - len(kept),
    )


def hinge_weights(gaps_PK: Floats, margins_P: Floats, penalty: float = PENALTY) -> Floats:
    """The weights w of least mean(max(0, 1 - margin - gap w)) + penalty x sum |w|, exactly, as a linear programme.

    A row of `gaps_PK` is the propositions of a better answer less those of a worse one; `margins_P` is the
    difference of their other rewards. Variables: w+ and w- (w = w+ - w-), and the loss of each pair.
    """
    num_pairs, num_rules = gaps_PK.shape
    cost = np.concatenate([np.full(2 * num_rules, penalty), np.full(num_pairs, 1 / num_pairs)])
    at_least_P = np.hstack([-gaps_PK, gaps_PK, -np.eye(num_pairs)])
    found = scipy.optimize.linprog(cost, A_ub=at_least_P, b_ub=margins_P - 1.0, method="highs")
    assert found.success, found.message
    weights: Floats = found.x[:num_rules] - found.x[num_rules : 2 * num_rules]
    return weights


class _Pair(NamedTuple):
    prompt: str
    gap: Floats
    margin: float


def _pairs(kept: Sequence[tuple[GradedAnswer, Floats]]) -> Iterator[_Pair]:
    """Every two answers to one prompt with different grades, the better one first."""
    by_prompt: dict[Messages, list[tuple[GradedAnswer, Floats]]] = {}
    for answer, phi in kept:
        by_prompt.setdefault(answer.prompt, []).append((answer, phi))
    for prompt, members in by_prompt.items():
        name = hashlib.sha256(repr(prompt).encode()).hexdigest()
        for (a, phi_a), (b, phi_b) in combinations(members, 2):
            if a.grade != b.grade:
                sign = 1.0 if a.grade > b.grade else -1.0
                yield _Pair(name, sign * (phi_a - phi_b), sign * (a.reward - b.reward))


def _features(
    found: RewardRules, answer: GradedAnswer, score: Callable[[Item, Completion], Score]
) -> Floats | None:
    about = Item("graded", answer.prompt, "", {}, answer.axis, "graded")
    phi = propositions(found, answer.prompt, about, Completion(answer.answer, "stop"), score)
    return None if None in phi else np.array(phi, dtype=np.float64)


def _cross_validated(gaps_PK: Floats, margins_P: Floats, prompts: Sequence[str]) -> Accuracy | None:
    """Accuracy on prompts left out of the fit, in five folds by a hash of the prompt; None for fewer prompts."""
    order = {name: n % FOLDS for n, name in enumerate(sorted(set(prompts)))}
    if len(order) < FOLDS:
        return None
    fold_P = np.array([order[name] for name in prompts])
    right_P = np.zeros(len(prompts), dtype=bool)
    for fold in range(FOLDS):
        out_P = fold_P == fold
        weights_K = hinge_weights(gaps_PK[~out_P], margins_P[~out_P])
        right_P[out_P] = gaps_PK[out_P] @ weights_K + margins_P[out_P] > 0
    return _accuracy(right_P, prompts)


def _accuracy(right_P: npt.NDArray[np.bool_], prompts: Sequence[str]) -> Accuracy:
    value, n = float(right_P.mean()), len(set(prompts))
    return Accuracy(value, *wilson(value * n, n), len(prompts), n)


def write_rules(path: Path, found: RuleFit) -> None:
    """Write the rules with their weights, whole or not at all; the first lines say what they were fitted on."""
    told = found.left_out or found.fitted
    head = (
        f"# Weights fitted by `demeanor data fit-rules` on {found.fitted.pairs} pairs of {found.fitted.prompts} prompts.\n"
        f"# Accuracy {'on prompts left out' if found.left_out else 'on these pairs'}: {told.value:.3f} "
        f"(95% {told.low:.3f} to {told.high:.3f}).\n"
    )
    body = {"rules": [_plain(rule) for rule in found.rules.rules]}
    write_text(path, head + yaml.safe_dump(body, sort_keys=False, allow_unicode=True))


def _plain(rule: Proposition) -> dict[str, Any]:
    kept = rule.model_dump(mode="json")
    return {name: value for name, value in kept.items() if value not in ([], {}) or name == "weight"}
