"""What an answer of a variant costs: milliseconds by layer, and tokens. Failed rows do not count as cheap ones."""

from __future__ import annotations

import numpy as np

from demeanor.evaluation.cells import Cells
from demeanor.evaluation.result import Spending


def spending(cells: Cells, variant: str) -> Spending:
    """Means over the answered rows; time is what the layers report having worked, waiting for each other excluded."""
    rows = [row for group in cells.of(variant).values() for row in group if not row.error]
    if not rows:
        return Spending(variant, 0.0, 0.0, 0.0, 0.0, {})
    work = [row.work_ms for row in rows]
    layers = dict.fromkeys(name for row in rows for name in row.layer_ms)
    return Spending(
        variant,
        float(np.mean(work)),
        float(np.quantile(work, 0.95)),
        float(np.mean([row.prompt_tokens for row in rows])),
        float(np.mean([row.completion_tokens for row in rows])),
        {name: sum(row.layer_ms.get(name, 0.0) for row in rows) / len(rows) for name in layers},
    )
