"""`number`: the last number of the answer is the right one.

In: a number. Out: 1 or 0, with the number that was read. Thousands separators are understood; a refusal is no number.
"""

from __future__ import annotations

import re
from decimal import Decimal

from demeanor.core import registry
from demeanor.core.types import Completion, Score

_NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:,\d{3})*(?:\.\d+)?")


class Spec(registry.Spec):
    """The right number."""

    value: int | float


def score(target: Spec, completion: Completion) -> Score:
    """1.0 if the answer's last number equals the target."""
    found = _NUMBER.findall(completion.text)
    if not found:
        return Score(0.0, "", "no number")
    last = found[-1].replace("−", "-")
    return Score(
        float(Decimal(last.replace(",", "")) == Decimal(str(target.value))), last, f"wanted {target.value}"
    )
