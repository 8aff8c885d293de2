"""Five pairs to label by hand, and how often a reader and the world agree.

In: comparisons of the world. Out: pairs in a drawn order, and the share of agreement with Wilson's interval.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from demeanor.core.types import Message
from demeanor.tour.findings import TourNumber
from demeanor.tour.trials import agreement
from demeanor.world import preferences

SKIPPED, PAIRS = 2000, 5
"""Pairs beyond those that any stage of the demo trains on."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with two answers in a drawn order; `better` is the world's choice, A or B."""

    question: str
    first: str
    second: str
    better: str


def pairs(seed: int = 0) -> list[Pair]:
    """Five pairs of different kinds."""
    rng, found = random.Random(seed), dict[str, Pair]()
    for one in islice(preferences.preferences(SKIPPED + 400), SKIPPED, None):
        if len(one.completions) != 2 or one.source in found:
            continue
        best, worst = one.completions if one.ranks[0] < one.ranks[1] else one.completions[::-1]
        answers = [_words(best[-1]), _words(worst[-1])]
        turned = rng.random() < 0.5
        shown = answers[::-1] if turned else answers
        question = "\n".join(f"{m.role}: {m.content}" for m in one.prompt if m.content)
        found[one.source or str(len(found))] = Pair(question, shown[0], shown[1], "B" if turned else "A")
        if len(found) == PAIRS:
            break
    return list(found.values())


def _words(message: Message) -> str:
    """An answer as a reader sees it; a tool call by its name and arguments."""
    return message.content or ", ".join(f"{call.name}({call.arguments})" for call in message.tool_calls)


def agreed(given: Sequence[str], shown: Sequence[Pair]) -> TourNumber:
    """How often the labels (A or B) are the world's."""
    return agreement(sum(a == pair.better for a, pair in zip(given, shown)), len(shown))
