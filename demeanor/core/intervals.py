"""Wilson's confidence interval of a rate, for evaluation and for held-out numbers of training.

Input: successes and trials, which may be effective numbers and so fractions. Output: lower and upper bound.
"""

from __future__ import annotations

import math

from scipy import special


def wilson(
    successes: float, n: float, confidence: float = 0.95, *, quantile: float | None = None
) -> tuple[float, float]:
    """Wilson's score interval of a rate (Wilson 1927), sound at 0 and 1, where others collapse.

    `quantile` replaces the normal one (a t quantile, for few clusters).
    """
    z = float(special.ndtri((1 + confidence) / 2)) if quantile is None else quantile
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
