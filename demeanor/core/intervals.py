"""Wilson's confidence interval of a rate.

In: successes and trials, which may be effective numbers and so fractions. Out: lower and upper bound.
"""

from __future__ import annotations

import math

from scipy import special


def wilson(
    successes: float, n: float, confidence: float = 0.95, *, quantile: float | None = None
) -> tuple[float, float]:
    """Return Wilson's score interval of a rate, which stays valid near 0 and 1.

    `quantile` replaces the normal quantile (a t quantile, for few clusters). Source: Wilson 1927.
    """
    z = float(special.ndtri((1 + confidence) / 2)) if quantile is None else quantile
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
