"""`confidence`: an answer with a stated confidence, judged by Brier's rule: sure and right is best, sure and wrong is worst.

In: accepted answers. Out: 1 - (p - y)^2, y being whether the answer is right and p the percentage that it states last ("Confidence: 80%");
without one it is taken as certain, as a reader would. `answer` tells both ("80% right"), so that calibration can be computed from rows.
"""

from __future__ import annotations

import itertools

from pydantic import Field, model_validator

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers._words import Token, plain, read, says


class Spec(registry.Spec):
    """What is right."""

    answers: tuple[str, ...] = Field(min_length=1, description="any of these, as whole words, is right")
    wrong: tuple[str, ...] = Field((), description="an answer that also names one of these is wrong")

    @model_validator(mode="after")
    def _can_be_right(self) -> Spec:
        for answer in self.answers:
            if not _right(self, answer):
                raise ValueError(
                    f"answers: '{answer}' itself would be wrong: it is empty, only a percentage, or names one of `wrong`"
                )
        return self


def stated(text: str) -> float | None:
    """The last percentage of a text as a share; None if it states none from 0 to 100."""
    found = [float(token.value) for token in _percents(text) if token.value is not None]
    return found[-1] / 100 if found and 0 <= found[-1] <= 100 else None


def _percents(text: str) -> list[Token]:
    """The numbers that are percentages, each with the span of both."""
    return [a for a, b in itertools.pairwise(read(text)) if a.value is not None and b.text == "%"]


def _right(target: Spec, text: str) -> bool:
    """Whether what a text says beside its percentages is right."""
    whole, cuts = plain(text), [0, *(place for token in _percents(text) for place in token.span), None]
    claim = " ".join(whole[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True))
    return any(says(claim, x) for x in target.answers) and not any(says(claim, x) for x in target.wrong)


def score(target: Spec, completion: Completion) -> Score:
    """Brier's rule, from 0 to 1; no answer and a refusal by a layer are unscored, for they claim nothing."""
    text = completion.text
    if completion.refusal or not text.strip():
        return Score(None, "", "no answer")
    right = _right(target, text)
    p = stated(text)
    claimed = 1.0 if p is None else p
    told = f"{round(100 * claimed, 4):g}% {'right' if right else 'wrong'}"  # evaluation/profile reads it
    return Score(
        1 - (claimed - right) ** 2, told, "no confidence stated, taken as certain" if p is None else ""
    )
