"""What a suite could find, before anything is run: the smallest true paired difference it shows four times in five.

It supposes that a share `DISCORDANCE` of the items changes between two variants and that items of a cluster agree with a correlation of
`WITHIN`; both are stated wherever the number is shown. After a run the measured spread takes their place (`statistics.minimal_detectable`).
"""

from __future__ import annotations

from scipy import optimize

from demeanor.evaluation.design import power_paired
from demeanor.evaluation.statistics import CONFIDENCE, POWER

DISCORDANCE = 0.2
WITHIN = 0.1


def effective(items: int, clusters: int, within: float = WITHIN) -> float:
    """Independent items that tell as much as these: n / (1 + (m - 1) rho), m items a cluster (Kish 1965)."""
    return items / (1 + (items / clusters - 1) * within)


def detectable(items: int, clusters: int, *, discordance: float = DISCORDANCE, within: float = WITHIN, confidence: float = CONFIDENCE,
               power: float = POWER) -> float | None:
    """The smallest paired difference that is shown with the given power (Connor 1987); None where none below `discordance` is."""
    n = effective(items, clusters, within)

    def lacking(effect: float) -> float:
        return power_paired(effect, discordance, n, confidence) - power

    most = discordance * (1 - 1e-9)
    if clusters < 2 or lacking(most) < 0:
        return None
    return float(optimize.brentq(lacking, 1e-6, most))
