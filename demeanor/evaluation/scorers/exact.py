"""`exact`: the answer names one of the accepted answers, in few words, and none of the wrong ones.

In: accepted answers, answers that would be wrong, a length. Out: 1 or 0. Case and punctuation do not count; naming every
candidate does not help. It knows no world.
"""

from __future__ import annotations

from pydantic import Field

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers._words import contains, words


class Spec(registry.Spec):
    """What is right."""

    answers: tuple[str, ...] = Field(min_length=1, description="any of these is right")
    wrong: tuple[str, ...] = Field((), description="an answer that also names one of these is wrong")
    max_words: int = Field(12, gt=0, description="longest answer in words")


def score(target: Spec, completion: Completion) -> Score:
    """1.0 if an accepted answer stands in a short answer as whole words, else 0.0."""
    said = words(completion.text)
    found = next((a for a in target.answers if contains(said, words(a))), "")
    if len(said) > target.max_words:
        return Score(0.0, found, f"{len(said)} words, at most {target.max_words} wanted")
    other = next((w for w in target.wrong if contains(said, words(w))), "")
    if other:
        return Score(0.0, other, f"names {other}")
    return Score(
        float(bool(found)),
        found or completion.text.strip()[:80],
        "" if found else f"wanted {' or '.join(target.answers)}",
    )
