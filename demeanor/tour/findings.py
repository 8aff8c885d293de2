"""What an experiment of the tour found: numbers with intervals, as a table, and as JSON that a later command reads.

In: estimates. Out: Findings on disk (results/tour/NAME.json), a Table, the check of a reader's answer. Measures nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from demeanor.core.errors import DataError
from demeanor.core.files import write_json
from demeanor.core.table import Table, number, percent
from demeanor.evaluation.statistics import Estimate

Unit = Literal["percent", "points", "nats"]


@dataclass(frozen=True, slots=True)
class TourNumber:
    """One number with its 95% interval (None: too few clusters); shares and differences lie in [-1, 1], nats do not."""

    value: float
    low: float | None
    high: float | None
    n: int
    unit: Unit = "percent"

    @property
    def scale(self) -> float:
        return 1.0 if self.unit == "nats" else 100.0

    def text(self) -> str:
        """The number with its interval, as a table shows it."""
        places = 1 if self.unit == "nats" else 0

        def one(x: float) -> str:
            if self.unit == "percent":
                return percent(x)
            signed = number(self.scale * x, places)
            return f"+{signed}" if self.unit == "points" and round(self.scale * x, places) > 0 else signed

        if self.low is None or self.high is None:
            return one(self.value)
        return f"{one(self.value)} ({one(self.low)} to {one(self.high)})"


def measured(found: Estimate, unit: Unit = "percent") -> TourNumber:
    """An estimate of evaluation/statistics.py as a number of the tour."""
    return TourNumber(found.value, found.low, found.high, found.n, unit)


@dataclass(frozen=True, slots=True)
class Findings:
    """All numbers of one experiment: `cells` by row and column, `answers` by the key of an exercise."""

    experiment: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[str, dict[str, TourNumber]]
    answers: dict[str, TourNumber]
    picture: Literal["bars", "curve"]
    said: str
    """One sentence: what the numbers say."""
    stack: str
    stack_key: str
    seconds: float
    limit: int | None = None

    def table(self) -> Table:
        """Rows down, columns across, with intervals."""
        body = tuple(
            (row, *(self.cells[row][c].text() if c in self.cells[row] else "" for c in self.columns))
            for row in self.rows
        )
        unit = {m.unit for row in self.cells.values() for m in row.values()}
        note = "share right, %" if unit == {"percent"} else "points" if unit == {"points"} else ""
        return Table(("", *self.columns), body, f"{note}{', ' if note else ''}with 95% intervals")

    def counts(self) -> str:
        """How many items stand behind the numbers; a number that is true by definition has none."""
        found = sorted({m.n for row in self.cells.values() for m in row.values() if m.n}) or [0]
        return f"n = {found[0]}" if len(found) == 1 else f"n = {found[0]} to {found[-1]}"


def save(found: Findings, folder: Path) -> Path:
    """Write NAME.json, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found.experiment}.json"
    write_json(path, asdict(found))
    return path


def load(path: Path) -> Findings:
    """Read what `save` wrote. Raises DataError."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        cells = {row: _numbers(found) for row, found in tree.pop("cells").items()}
        return Findings(
            cells=cells,
            answers=_numbers(tree.pop("answers")),
            rows=tuple(tree.pop("rows")),
            columns=tuple(tree.pop("columns")),
            **tree,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is no result of the tour ({error}); run the chapter again") from None


def _numbers(tree: Mapping[str, Any]) -> dict[str, TourNumber]:
    return {key: TourNumber(**values) for key, values in tree.items()}


def verdict(given: float, wanted: TourNumber) -> tuple[bool, str]:
    """Is a reader's answer within the interval of the reader's own run? `given` is in per cent, points or nats."""
    low = wanted.value if wanted.low is None else wanted.low
    high = wanted.value if wanted.high is None else wanted.high
    slack = 0.5 if wanted.unit != "nats" else 0.05  # what rounding hides
    right = math.isfinite(given) and low * wanted.scale - slack <= given <= high * wanted.scale + slack
    return right, f"your run gave {wanted.text()}"
