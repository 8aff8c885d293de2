"""A weighted sum of other objectives on the same comparisons.

Source: Wang et al. 2024 (2411.10442, mixed preference optimisation), equation 3.
Page: docs/objectives/mixture.md
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, ValidationError, field_validator

from demeanor.core import registry
from demeanor.core.errors import DemeanorError
from demeanor.model.tensors import Loss, Outputs, TokenBatch

PACKAGE = "demeanor.objectives"
ROWS = "preferences"
READS = "logprobs"
ROLES: tuple[str, ...] = ("reference",)
POLICY = True


class Spec(registry.Spec):
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
                f"{', '.join(twice)}: got more than one part of this kind, wanted one (the metric loss/KIND is its)"
            )
        return parts


def read(part: dict[str, Any]) -> tuple[Any, registry.Spec, float]:
    """The module, settings and weight of one part; raises ValueError saying what is wrong with it."""
    kind, weight = part.get("kind"), part.get("weight", 1.0)
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not 0 < weight < math.inf:
        raise ValueError(f"weight of {kind}: got {weight!r}, wanted a number above 0")
    try:
        module = registry.entry(PACKAGE, str(kind))
        settings = registry.spec_of(PACKAGE, str(kind)).model_validate(
            {k: v for k, v in part.items() if k not in ("kind", "weight")}
        )
    except DemeanorError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{kind}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    barred = [name for name in ("WHOLE_STEP", "MOVING", "STATISTICS") if getattr(module, name, False)]
    if module.ROWS != ROWS or module.READS != READS or barred or kind == "mixture":
        raise ValueError(
            f"{kind} cannot be a part: wanted an objective of comparisons whose loss is a sum over prompts"
        )
    return module, settings, float(weight)


def loss(spec: Spec, outputs: Outputs, batch: TokenBatch) -> Loss:
    """Sum over parts of weight x their loss. Metrics: loss/KIND of each part (before its weight), and TRL's of the first part."""
    found = [(str(part["kind"]), *read(part)) for part in spec.parts]
    losses = [
        (kind, weight, module.loss(settings, outputs, batch)) for kind, module, settings, weight in found
    ]
    total = sum((weight * each.total for _, weight, each in losses[1:]), losses[0][1] * losses[0][2].total)
    metrics = dict(losses[0][2].metrics)
    metrics |= {f"loss/{kind}": (each.total.detach(), each.count) for kind, _, each in losses}
    return Loss(total, losses[0][2].count, metrics)
