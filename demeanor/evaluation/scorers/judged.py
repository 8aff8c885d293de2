"""`judged`: an answer that only a judge can score: what the judge is asked, and which verdict is right.

In: a question, a reference, the scale of the verdict. Out: no value here: `evaluation.judge` of the stack names a model that scores it
(docs/judge.md); without one it stays unscored, so a set can be run and read without pretending to a score.
"""

from __future__ import annotations

from typing import Literal

from demeanor.core import registry
from demeanor.core.types import Completion, Score


class Spec(registry.Spec):
    """What a judge is asked."""

    question: str = ""
    reference: str | tuple[str, ...] = ""
    turns: tuple[str, ...] = ()
    """Further user turns, each asked after the answer to the one before (evaluation/asking.py)."""
    scale: Literal["yes_no", "rating"] = "yes_no"
    """`yes_no`: a question with two answers; `rating`: a whole number N from 1 to 10, worth (N - 1) / 9."""
    right: Literal["yes", "no"] = "yes"
    """Of `yes_no`: the verdict that is worth 1."""


def score(target: Spec, completion: Completion) -> Score:
    """Unscored, always: no judge is here."""
    return Score(
        None, completion.text[:200], f"needs a judge{': ' + target.question if target.question else ''}"
    )
