"""Rows as a table: which value, answer and row a variant has on an item; seeds averaged, holes kept as holes.

In: rows and items. Out: numpy columns over the items of an axis. It compares nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from demeanor.core.errors import DataError
from demeanor.core.types import Item
from demeanor.evaluation.rows import Row
from demeanor.evaluation.statistics import Floats


class PairedTable:
    """The rows of an evaluation by variant and item; an item's value is the mean over its seeds, NaN if any seed has none."""

    def __init__(self, rows: Sequence[Row], items: Sequence[Item]) -> None:
        self.items = {item.id: item for item in items}
        self.axes = {item.axis: [x for x in items if x.axis == item.axis] for item in items}
        self.rows: dict[str, dict[str, list[Row]]] = {}
        for row in rows:
            if row.item_id not in self.items:
                raise DataError(
                    f"a row of variant {row.variant} answers item '{row.item_id}', which is not in the suite"
                )
            self.rows.setdefault(row.variant, {}).setdefault(row.item_id, []).append(row)

    def of(self, variant: str) -> dict[str, list[Row]]:
        """Rows of a variant by item id, one per seed; raises DataError if it was never run."""
        if variant not in self.rows:
            raise DataError(f"variant {variant} has no rows. Measured: {', '.join(self.rows) or 'none'}")
        return self.rows[variant]

    def values_N(self, variant: str, axis: str) -> Floats:
        """The value of every item of an axis, in suite order; NaN where a seed has no score."""
        rows = self.of(variant)
        return np.array([value(rows.get(item.id, ())) for item in self.axes[axis]], dtype=float)

    def clusters_N(self, axis: str) -> npt.NDArray[np.str_]:
        """The cluster of every item of an axis."""
        return np.array([item.cluster for item in self.axes[axis]], dtype=np.str_)


def value(rows: Sequence[Row]) -> float:
    """The mean over an item's seeds; NaN without rows or where one has no score."""
    if not rows:
        return float("nan")
    return float(np.mean([np.nan if row.value is None else row.value for row in rows]))


SAME = "same:"
"""Items that share a tag `same:NAME` say the same thing in other words."""
