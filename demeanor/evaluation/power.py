"""What a suite could find, before anything is run: the smallest true paired difference it shows four times in five.

It supposes that a share `DISCORDANCE` of the items changes between two variants and that items of a cluster agree with a correlation of
`WITHIN`; both are stated wherever the number is shown. After a run the measured spread takes their place (`statistics.minimal_detectable`).
"""

from __future__ import annotations

import math

from scipy import special

from demeanor.evaluation.statistics import CONFIDENCE, POWER

DISCORDANCE = 0.2
"""The assumed share of items on which two variants differ."""
WITHIN = 0.1
"""The assumed correlation of items of one cluster."""


def effective(items: int, clusters: int, within: float = WITHIN) -> float:
    """Independent items that tell as much as these: n / (1 + (m - 1) rho), m items a cluster (Kish 1965)."""
    return items / (1 + (items / clusters - 1) * within)


def smallest(n: float, discordance: float = DISCORDANCE) -> float:
    """The paired difference that n independent items find four times in five when a share `discordance` of them changes at all.

    D = z sqrt(psi / (n + z^2)) with z = z_{1-a/2} + z_power: `statistics.items_needed` (Connor 1987) solved for the difference.
    """
    z = float(special.ndtri((1 + CONFIDENCE) / 2) + special.ndtri(POWER))
    return z * math.sqrt(discordance / (n + z * z))


def detectable(
    items: int, clusters: int, *, discordance: float = DISCORDANCE, within: float = WITHIN
) -> float | None:
    """The same of items in clusters; None with one cluster, and where nothing below `discordance` could be found."""
    size = smallest(effective(items, clusters, within), discordance)
    return None if clusters < 2 or size >= discordance else size
