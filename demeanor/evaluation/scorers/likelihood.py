"""`likelihood`: how likely the weights find a given text, per byte, so that tokenizers can be compared.

In: the text that follows the item's message. Out: exp(log-likelihood / bytes), in (0, 1]: the geometric mean probability of a byte;
bits per byte are -log2 of it, and stand in `answer`. Nothing is said; it reads PromptRead events (evaluation/asking.py).
"""

from __future__ import annotations

import math

from pydantic import Field

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers.choice import Read, likelihoods

READS_EVENTS = True
"""It looks at what happened on the way, which a row does not keep: kept answers are not scored again."""


class Spec(registry.Spec):
    """The text to be read."""

    text: str = Field(min_length=1, description="continuation of the item's last message, read as it stands")


def score(target: Spec, completion: Completion) -> Score:
    """The mean probability of a byte; unscored where likelihoods are not known."""
    logs = likelihoods(Read((target.text,)), completion)
    if isinstance(logs, str):
        return Score(None, "", logs)
    per_byte = logs[0] / len(target.text.encode())
    return Score(min(1.0, math.exp(per_byte)), f"{-per_byte / math.log(2):.3f} bits per byte", "")
