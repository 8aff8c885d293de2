"""Scorers: an answer to a Score. A file is one scorer (its name is the key) or lists several in ENTRIES.

Input: an item's target and a completion. Output: a value in [0, 1] or None (unscored), the answer that was read, and why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from demeanor.core import registry
from demeanor.core.types import Completion, Item, Score

SCORERS = "demeanor.evaluation.scorers"


@dataclass(frozen=True)
class Scorer:
    """A scorer in a file that has several: the settings of its target, and its function."""

    Spec: type[registry.Spec]
    score: Callable[[Any, Completion], Score]
    READS_EVENTS: bool = False
    """It looks at what happened on the way, which a row does not keep: kept answers are not scored again."""


def score_item(item: Item, completion: Completion) -> Score:
    """Score one completion with the item's scorer."""
    scorer = registry.entry(SCORERS, item.scorer)
    score: Score = scorer.score(scorer.Spec.model_validate(dict(item.target)), completion)
    return score


def scored_from_text(item: Item) -> bool:
    """Whether an answer to this item can be scored from what a row keeps: its text, and which layer refused."""
    return not getattr(registry.entry(SCORERS, item.scorer), "READS_EVENTS", False)
