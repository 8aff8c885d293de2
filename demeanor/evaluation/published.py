"""A table of scores that somebody published without intervals: what changed from column to column, and what could have been told at all.

In: a small YAML or JSON file (title, source, columns, rows of values, numbers of items where they are known). Out: one plain tree for the
report. It measures nothing and claims no interval: a size is what an assumed share of changing items allows.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from demeanor.core.errors import DataError
from demeanor.evaluation.statistics import CONFIDENCE, DISCORDANCE, POWER, smallest


class PublishedRow(BaseModel):
    """One benchmark: a value per column (null: not published), its number of items where that is certain, and whether it sums up others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=1)
    values: tuple[float | None, ...]
    n: int | None = Field(None, gt=0)
    note: str = ""
    summary: bool = False


class Published(BaseModel):
    """The table as it was published."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str = Field(min_length=1)
    source: str = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=2)
    rows: tuple[PublishedRow, ...] = Field(min_length=1)
    unit: str = "%"
    notes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _square(self) -> Published:
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"rows '{row.name}': got {len(row.values)} values, wanted one for each of {len(self.columns)} columns"
                )
            if any(v is not None and not 0 <= v <= 100 for v in row.values):
                raise ValueError(
                    f"rows '{row.name}': wanted values from 0 to 100, higher is better, null where none was published"
                )
        names = [row.name for row in self.rows]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"rows '{twice}': this name stands twice")
        return self


def load(path: Path) -> Published:
    """Read a published table; raises DataError naming the first field that does not fit."""
    try:
        text = path.read_text(encoding="utf-8")
        return Published.model_validate(json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except ValidationError as error:
        one = error.errors(include_url=False)[0]
        raise DataError(
            f"{path}: {'.'.join(map(str, one['loc'])) or 'table'}: {one['msg'].removeprefix('Value error, ')}. "
            "Wanted: title, source, columns, and rows with a name and a value per column"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{path}: neither YAML nor JSON ({error})") from error


def as_tree(table: Published, name: str) -> dict[str, Any]:
    """The table as the report reads it: rows with their changes in points, and every change, the largest loss first."""
    rows = [_row(row) for row in table.rows]
    changes = [
        {
            "row": row["name"],
            "column": column,
            "before": a,
            "after": b,
            "points": points,
            "n": row["n"],
            "detectable": row["detectable"],
            "told": _told(points, row["detectable"]),
            "summary": row["summary"],
        }
        for row in rows
        for column, (a, b), points in zip(table.columns[1:], pairwise(row["values"]), row["changes"])
        if points is not None
    ]
    return {
        "name": name,
        "title": table.title,
        "source": table.source,
        "columns": list(table.columns),
        "unit": table.unit,
        "rows": rows,
        "notes": list(table.notes),
        "discordance": DISCORDANCE,
        "confidence": CONFIDENCE,
        "power": POWER,
        "changes": sorted(changes, key=lambda c: c["points"]),
    }


def _row(row: PublishedRow) -> dict[str, Any]:
    moved = [None if a is None or b is None else round(b - a, 6) for a, b in pairwise(row.values)]
    size = None if row.n is None else 100 * smallest(row.n)
    return {
        "name": row.name,
        "note": row.note,
        "n": row.n,
        "summary": row.summary,
        "values": list(row.values),
        "changes": moved,
        "detectable": size,
        "told": [None if p is None else _told(p, size) for p in moved],
    }


def _told(points: float, size: float | None) -> bool | None:
    """Whether a change is as large as the design could find; None where the number of items is not known."""
    return None if size is None else abs(points) >= size


def is_table(path: Path) -> bool:
    """Whether a file is a published table and no result of ours: YAML, or JSON with columns."""
    if path.suffix in (".yaml", ".yml"):
        return True
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and "columns" in tree
