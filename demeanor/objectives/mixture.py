"""A weighted sum of other objectives on the same comparisons.

In: log-probabilities of policy and reference. Out: the weighted sum of its parts' losses. Page:
docs/objectives.md.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, ValidationError, field_validator

from demeanor.core import registry
from demeanor.core.errors import DemeanorError
from demeanor.model.tensors import Loss, Outputs, TokenBatch
from demeanor.objectives import REFERENCE, Objective

PACKAGE = "demeanor.objectives"


class MixtureSpec(registry.Spec):
    """Settings of mixture."""

    parts: tuple[dict[str, Any], ...] = Field(
        min_length=1, description="objectives: kind, weight (default 1) and their own settings"
    )

    @field_validator("parts")
    @classmethod
    def _known(cls, parts: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for part in parts:
            read(part)
        kinds = [part["kind"] for part in parts]
        if twice := sorted({kind for kind in kinds if kinds.count(kind) > 1}):
            raise ValueError(
                f"{', '.join(twice)}: got more than one part of this kind, wanted one "
                "(the metric loss/KIND is its)"
            )
        return parts


def read(part: dict[str, Any]) -> tuple[Objective, registry.Spec, float]:
    """Return the objective, settings and weight of one part; raises ValueError that says what is wrong."""
    kind, weight = part.get("kind"), part.get("weight", 1.0)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
        raise ValueError(f"weight of {kind}: got {weight!r}, wanted a number above 0")
    try:
        objective: Objective = registry.entry(PACKAGE, str(kind))
        settings = objective.Spec.model_validate(
            {k: v for k, v in part.items() if k not in ("kind", "weight")}
        )
    except DemeanorError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{kind}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    of_pairs = objective.ROWS == "preferences" and objective.READS == "logprobs"
    needs_more = objective.WHOLE_STEP or objective.STATISTICS or objective.MOVING is not None
    if not of_pairs or needs_more or kind == "mixture":
        raise ValueError(
            f"{kind} cannot be a part: wanted an objective of comparisons whose loss is a sum over prompts"
        )
    return objective, settings, float(weight)


def mixture(spec: MixtureSpec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum of weight x loss of the parts. Metrics: loss/KIND of each part (unweighted), and TRL's of the
    first."""
    found = [(str(part["kind"]), *read(part)) for part in spec.parts]
    losses = [
        (kind, weight, objective.loss(settings, outputs, batch))
        for kind, objective, settings, weight in found
    ]
    total = sum((weight * each.total for _, weight, each in losses[1:]), losses[0][1] * losses[0][2].total)
    metrics = dict(losses[0][2].metrics)
    metrics |= {f"loss/{kind}": (each.total.detach(), each.count) for kind, _, each in losses}
    return Loss(total, losses[0][2].count, metrics)


ENTRIES = {
    "mixture": Objective(
        MixtureSpec,
        mixture,
        source="Wang et al. 2024 (2411.10442, mixed preference optimisation), equation 3",
        ROLES=REFERENCE,
    )
}
