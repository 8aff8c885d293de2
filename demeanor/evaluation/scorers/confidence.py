"""`confidence`: an answer with a stated confidence, judged by Brier's rule: sure and right is best, sure and wrong is worst.

In: accepted answers. Out: 1 - (p - y)^2, y being whether the answer is right and p the percentage that it states last ("Confidence: 80%");
without one it is taken as certain, as a reader would. `answer` tells both ("80% right"), so that calibration can be computed from rows.
"""

from __future__ import annotations

import re

from pydantic import Field

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers._checks import says

_STATED = re.compile(
    r"(?<!\d)(?<!\d[.,])(\d{1,3}(?:\.\d+|,\d{1,2})?)\s*(?:%|per ?cent\b)"
)  # 1000% states none, and 99,5% no 5


class Spec(registry.Spec):
    """What is right."""

    answers: tuple[str, ...] = Field(min_length=1, description="any of these, as whole words, is right")
    wrong: tuple[str, ...] = Field((), description="an answer that also names one of these is wrong")


def stated(text: str) -> float | None:
    """The last percentage of a text as a share; None if it states none from 0 to 100."""
    found = [float(x.replace(",", ".")) for x in _STATED.findall(text)]
    return found[-1] / 100 if found and found[-1] <= 100 else None


def score(target: Spec, completion: Completion) -> Score:
    """Brier's rule, from 0 to 1; no answer and a refusal by a layer are unscored, for they claim nothing."""
    text = completion.text
    if completion.refusal or not text.strip():
        return Score(None, "", "no answer")
    claim = _STATED.sub(" ", text)
    right = any(says(claim, x) for x in target.answers) and not any(says(claim, x) for x in target.wrong)
    p = stated(text)
    claimed = 1.0 if p is None else p
    told = f"{round(100 * claimed, 4):g}% {'right' if right else 'wrong'}"  # evaluation/profile reads it
    return Score(
        1 - (claimed - right) ** 2, told, "no confidence stated, taken as certain" if p is None else ""
    )
