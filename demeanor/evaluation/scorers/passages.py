"""`passages`: whether retrieval put the right passages before the model.

In: the names or sources of the right ones. Out: the share of them found (`recall`), 1 if any (`hit`), or 1 / the place of the first
(`mrr`). What the model then says is not judged; where no layer retrieves, every value is 0.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from demeanor.core import registry
from demeanor.core.types import Completion, Passage, Score

READS_EVENTS = True
"""It looks at what happened on the way, which a row does not keep: kept answers are not scored again."""


class Spec(registry.Spec):
    """What should be found."""

    gold: tuple[str, ...] = Field(
        min_length=1, description="ids or sources of the right passages; or words that stand in its text"
    )
    measure: Literal["recall", "hit", "mrr"] = "recall"
    reference: str = ""


def score(target: Spec, completion: Completion) -> Score:
    """How well the retrieved passages, in their order, cover the right ones."""
    found = [e for e in completion.events if isinstance(e, Passage)]
    right = [{g for g in target.gold if g in (p.id, p.source) or g in p.text.split()} for p in found]
    covered = set().union(*right)
    first = next((place for place, names in enumerate(right, 1) if names), None)
    wanted = len(set(target.gold))
    value = {
        "recall": len(covered) / wanted,
        "hit": float(bool(covered)),
        "mrr": 1 / first if first else 0.0,
    }[target.measure]
    return Score(
        value,
        ", ".join(p.source or p.id for p in found),
        f"{len(covered)} of {wanted} right passages among {len(found)}",
    )
