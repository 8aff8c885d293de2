"""What the twelve experiments of docs/science.md found: one record a claim, printed as a table and written as JSON.

In: findings of the tabular tests and of the tiny language models. Out: results/experiments/science/EXPERIMENT.json, and the rows of the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import special

from demeanor.core.files import origin
from demeanor.evaluation.statistics import CONFIDENCE, cluster_se
from tests.conftest import REPOSITORY

RESULTS = REPOSITORY / "results" / "experiments" / "science"
FIGURES = REPOSITORY / "docs" / "science"


class Finding(NamedTuple):
    """One claim: what theory says, what was measured (with its interval, None where it is exact), over how much, and whether it holds."""

    claim: str
    theory: str
    measured: float
    holds: bool
    low: float | None = None
    high: float | None = None
    n: int = 1  # runs, draws or rows behind the number
    seeds: int = 1
    places: int = 3

    @property
    def number(self) -> str:
        """The measured value with its interval."""
        bounds = "" if self.low is None else f" ({self.low:.{self.places}f} to {self.high:.{self.places}f})"
        small = 0 < abs(self.measured) < 10**-self.places
        return (f"{self.measured:.1e}" if small else f"{self.measured:.{self.places}f}") + bounds

    @property
    def verdict(self) -> str:
        """pass or FAIL; nothing where theory is only reported."""
        if self.theory.startswith("reported"):
            return ""
        return "pass" if self.holds else "FAIL"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of independent runs with its 95% t interval: (mean, low, high)."""
    mean, se = float(np.mean(values)), cluster_se(np.asarray(values, dtype=float), range(len(values)))
    assert se is not None, "one run has no interval"
    half = float(special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * se
    return mean, mean - half, mean + half


def failed(found: Sequence[Finding]) -> list[str]:
    """The claims that do not hold, with their numbers; fails where nothing was claimed."""
    assert found, "nothing was claimed"
    return [f"{f.claim}: got {f.number}, wanted {f.theory}" for f in found if not f.holds]


def publish(experiment: str, found: Sequence[Finding], **more: Any) -> Path:
    """Print the findings of one experiment and write them with `more` as JSON; returns the file."""
    table = Table(title=experiment, title_justify="left", box=None)
    for name in ("claim", "theory", "measured", "n", "seeds", ""):
        table.add_column(name)
    for f in found:
        table.add_row(f.claim, f.theory, f.number, str(f.n), str(f.seeds), f.verdict)
    Console(width=150).print(table)
    RESULTS.mkdir(parents=True, exist_ok=True)
    out = RESULTS / f"{experiment}.json"
    rows = [{**f._asdict(), "number": f.number} for f in found]
    tree = {"findings": rows, **more, **origin()}
    out.write_text(json.dumps(tree, indent=1, default=lambda x: x.item()) + "\n")  # numbers of numpy
    return out
