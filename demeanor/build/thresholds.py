"""A policy at other thresholds: what a stricter or laxer rule of cues would refuse, as variants of the stack.

In: a variant with a policy layer, contrast twins. Out: the same variant with one threshold changed, once for each that tells the twins
apart in another way. Weights read the same whatever the threshold, so measuring them generates nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from demeanor.build.trials import replaced
from demeanor.evaluation.suite import SAFE, UNSAFE
from demeanor.layers import _rules as rules
from demeanor.layers._files import read_yaml
from demeanor.layers._folding import Folded
from demeanor.layers.policy import Spec
from demeanor.stack import Stack
from demeanor.types import Item

MOST = 8
"""Thresholds of one rule; of more, so many evenly spread ones."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A variant whose rule refuses from `threshold` on; `declared`: as the file has it."""

    rule: str
    threshold: float
    declared: bool
    variant: Stack


def cuts(variant: Stack, items: Sequence[Item], scratch: Path) -> Iterator[Cut]:
    """Every rule of cues that reads requests at every threshold worth looking at; `scratch` is a folder for the changed policy files."""
    for layer in variant.layers:
        if not isinstance(layer.spec, Spec):
            continue
        declared = read_yaml(variant.root / layer.spec.rules, rules.PolicySpec).rules
        for spec in declared:
            for threshold in thresholds(spec, items) if spec.cues and spec.on != "output" else ():
                if threshold == spec.threshold:
                    yield Cut(spec.name, threshold, True, variant)
                    continue
                changed = [
                    {
                        **r.model_dump(mode="json", exclude_unset=True),
                        **({"threshold": threshold} if r is spec else {}),
                    }
                    for r in declared
                ]
                path = scratch / f"{layer.name}-{spec.name}-{threshold:.9g}.yaml"
                path.write_text(yaml.safe_dump({"rules": changed}), encoding="utf-8")
                other = layer.spec.model_copy(update={"rules": str(path.resolve())})
                found = replaced(variant, layer.name, replace(layer, spec=other))
                yield Cut(
                    spec.name,
                    threshold,
                    False,
                    replace(found, model_id=f"{variant.model_id}@{spec.name}={threshold:.9g}"),
                )


def thresholds(spec: rules.RuleSpec, items: Sequence[Item]) -> list[float]:
    """The scores above 0 that the messages of the twins have (a threshold between two of them refuses the same), and the declared one."""
    weigh = rules.rule(spec).weigh
    assert weigh is not None, "only a rule of cues has a score"
    scores = (
        weigh(Folded(message.content).text)
        for item in items
        if item.axis in (SAFE, UNSAFE)
        for message in item.messages
    )
    found: list[float] = []
    for score in sorted(s for s in scores if s > rules.ROUNDING):
        if (
            not found or score - found[-1] > rules.ROUNDING
        ):  # 0.1 + 0.2 and 0.3 are one score and refuse the same
            found.append(score)
    if len(found) > MOST:
        found = [found[round(i * (len(found) - 1) / (MOST - 1))] for i in range(MOST)]
    declared = spec.threshold or 0.0
    return sorted(
        [*(s for s in found if abs(s - declared) > rules.ROUNDING), *([declared] if declared else [])]
    )
