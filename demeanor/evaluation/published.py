"""A table of scores that somebody published without intervals: what changed from column to column, and what could have been told at all.

In: a small YAML or JSON file (title, source, columns, rows of values, numbers of items where they are known). Out: one plain tree for the
report. It measures nothing and claims no interval: a size is what an assumed share of changing items allows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from demeanor.core.errors import DataError
from demeanor.core.table import (
    NONE,
    WRITTEN,
    Block,
    Bullets,
    Facts,
    Inline,
    OnlyFor,
    Page,
    Paragraph,
    Section,
    StyledText,
    Table,
    number,
    percent,
    plural,
    tone_of,
)
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
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: neither YAML nor JSON ({error})") from error


def is_table(path: Path) -> bool:
    """Whether a file is a published table and no result of ours: YAML, or JSON with columns."""
    if path.suffix in (".yaml", ".yml"):
        return True
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and "columns" in tree


# ---- what a person reads ----

NO_INTERVALS = "No intervals were published, so this table cannot show whether a change is more than noise."
LOSSES, GAINS = 8, 5
"""Changes listed; the table has them all."""
KEY = (
    "Behind a score: its change from the column before, in points. ~: too small to detect with this many items. ?: the number of items "
    "is not known. No mark: large enough to detect, which does not replace an interval."
)


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """What a row did from a column to the next; `told`: whether so many items could have found it, None where their number is not known."""

    row: PublishedRow
    column: str
    before: float
    after: float
    points: float
    detectable: float | None
    told: bool | None


def detectable(row: PublishedRow) -> float | None:
    """The smallest change in points that so many items would find."""
    return None if row.n is None else 100 * smallest(row.n)


def row_changes(table: Published, row: PublishedRow) -> list[ScoreChange | None]:
    """The change to every column from the one before; None where a score is missing."""
    size = detectable(row)
    found: list[ScoreChange | None] = []
    for column, (a, b) in zip(table.columns[1:], pairwise(row.values)):
        if a is None or b is None:
            found.append(None)
            continue
        moved = round(b - a, 6)
        told = None if size is None else abs(moved) >= size
        found.append(ScoreChange(row, column, a, b, moved, size, told))
    return found


def changes(table: Published) -> list[ScoreChange]:
    """Every change, the largest loss first."""
    found = [change for row in table.rows for change in row_changes(table, row) if change]
    return sorted(found, key=lambda c: c.points)


def page(table: Published) -> Page:
    """The table as a ladder of columns, its losses first, and which changes were large enough to detect."""
    single = [c for c in changes(table) if not c.row.summary]
    lost = [c for c in single if c.points < 0][:LOSSES]
    gained = [c for c in reversed(single) if c.points > 0][:GAINS]
    benchmarks = sum(not row.summary for row in table.rows)
    return Page(
        title=f"{table.title}: what changed",
        about=f"{table.title}: a published table, {plural(benchmarks, 'benchmark')}, {plural(len(table.columns), 'column')}",
        headline=headline(table),
        sections=(
            _ladder(table),
            _listing(
                "losses",
                "What fell",
                "The largest losses from a column to the next, worst first, whatever the average did.",
                lost,
                "No benchmark fell.",
            ),
            _listing(
                "gains",
                "What rose",
                "The largest gains from a column to the next.",
                gained,
                "No benchmark rose.",
            ),
            _sizes(table),
            _method(table),
        ),
        gains=tuple(_short(c) for c in gained[:2]),
        losses=tuple(_short(c) for c in lost[:1]),
        caveats=(NO_INTERVALS, *table.notes),
        source=f"{table.source}.",
    )


def headline(table: Published) -> str:
    """The benchmark that fell most from its first column to its last, beside the mean score if there is one."""
    single = [row for row in table.rows if not row.summary]
    worst = min(single, key=_fall, default=None)
    if worst is None or _fall(worst) >= 0:
        return f"{table.title}: no benchmark ends lower than it began."
    rising = [row for row in table.rows if row.summary and _rises(row_changes(table, row))]
    mean = max(rising, key=lambda row: sum(v is not None for v in row.values), default=None)
    if mean is None:
        return f"{worst.name} fell: {_path(worst)}."
    return f"{worst.name} fell, {_path(worst)}, while the average rose, {_path(mean)}. A release rule on the average score would not have noticed."


def _path(row: PublishedRow) -> str:
    return "\u00a0→ ".join(f"{v:.1f}" for v in row.values if v is not None)


def _fall(row: PublishedRow) -> float:
    known = [v for v in row.values if v is not None]
    return known[-1] - known[0] if known else 0.0


def _rises(found: list[ScoreChange | None]) -> bool:
    known = [c.points for c in found if c]
    return bool(known) and min(known) > 0


def change_sentence(c: ScoreChange) -> str:
    """One change with what its number of items allows to say."""
    did = "lowered" if c.points < 0 else "raised"
    said = (
        f"{c.column} {did} {c.row.name} from {c.before:.1f} to {c.after:.1f} ({_signed(c.points)} points). "
    )
    if c.detectable is None:
        return f"{said}The number of items is not known, so chance cannot be ruled out."
    if c.told:
        return (
            f"{said}With {c.row.n:,} items, a change of {c.detectable:.1f} points is large enough to detect."
        )
    return f"{said}With {c.row.n:,} items, a change smaller than {c.detectable:.1f} points cannot be told from chance."


def _short(c: ScoreChange) -> str:
    return f"{c.column} {'lowered' if c.points < 0 else 'raised'} {c.row.name} by {abs(c.points):.1f} points."


def _signed(points: float) -> str:
    return f"+{points:.1f}" if points > 0 else number(points, 1)


def _ladder(table: Published) -> Section:
    rows: list[tuple[Inline, ...]] = []
    for row in table.rows:
        cells = [_score(value, c) for value, c in zip(row.values, [None, *row_changes(table, row)])]
        name: Inline = (row.name, StyledText(f" ({row.note})", "soft")) if row.note else row.name
        rows.append((name, *cells, StyledText(_count(row), "soft"), StyledText(_size(row), "soft")))
    columns = ("", *table.columns, "items", "smallest detectable")
    share = percent(DISCORDANCE)
    return Section(
        "ladder",
        "Columns",
        "Column by column",
        (
            Paragraph(
                "The columns as they were published. Behind a score: its change from the column before, in points.",
                "lead",
            ),
            Table(columns, tuple(rows), f"score, {table.unit}", heat=True),
            Paragraph(KEY, "note"),
            OnlyFor(
                WRITTEN,
                (
                    Paragraph(
                        f"“Smallest detectable”: in points, if {share}% of the items change between columns (assumed).",
                        "note",
                    ),
                ),
            ),
        ),
    )


def _score(value: float | None, c: ScoreChange | None) -> Inline:
    if value is None:
        return StyledText(NONE)
    score = StyledText(f"{value:.1f}", share=value / 100)
    if c is None:
        return score
    mark = {None: "?", True: "", False: "~"}[c.told]
    tone = tone_of(c.points, shown=c.told is not False and c.points != 0)
    return score, StyledText(f"{_signed(c.points)}{mark}", "change", tone)


def _count(row: PublishedRow) -> str:
    return "not known" if row.n is None else f"{row.n:,}"


def _size(row: PublishedRow) -> str:
    size = detectable(row)
    return NONE if size is None else f"{size:.1f}"


def _listing(anchor: str, title: str, lead: str, found: list[ScoreChange], none: str) -> Section:
    """Changes in words; a small loss is quiet."""
    quiet = frozenset(n for n, c in enumerate(found) if c.told is False)
    style: Literal["", "losses"] = "losses" if anchor == "losses" else ""
    listed: Block = (
        Bullets(tuple(map(change_sentence, found)), style, quiet) if found else Paragraph(none, "calm")
    )
    return Section(anchor, anchor.capitalize(), title, (Paragraph(lead, "lead"), listed))


def _sizes(table: Published) -> Section:
    """How large a change had to be for so many items to find it, and how many changes were smaller."""
    known = [row for row in table.rows if row.n is not None]
    unknown = [row.name for row in table.rows if row.n is None and not row.summary]
    rows = []
    for row in known:
        told = [
            NONE if c is None else f"{_signed(c.points)}{'' if c.told else ' below'}"
            for c in row_changes(table, row)
        ]
        rows.append((row.name, _count(row), _size(row), *told))
    note = "“Below”: smaller than the detectable size. Such a change may be noise, and a real change smaller than that size may go unseen."
    if unknown:
        note += f" Not known for {', '.join(unknown)}."
    columns = ("", "items", "detectable, points", *(f"to {column}" for column in table.columns[1:]))
    blocks = (
        Paragraph(
            f"{NO_INTERVALS} It can show how large a change had to be for that many items to detect it.",
            "lead",
        ),
        Table(columns, tuple(rows)),
        Paragraph(note, "note"),
    )
    return Section(
        "told", "Detectable changes", "Which changes were large enough to detect", (OnlyFor(WRITTEN, blocks),)
    )


def _method(table: Published) -> Section:
    lines = (
        f"Source: {table.source}. Nothing was measured here.",
        f"Smallest detectable: the true paired change that this many independent items detect {percent(POWER)} times in 100 at the "
        f"{percent(1 - CONFIDENCE)}% level, if {percent(DISCORDANCE)}% of the items change at all. That share was not published; it is "
        "assumed. D = z √(ψ / (n + z²)), z = 1.96 + 0.84, ψ = the share (Connor 1987).",
        "Items that share a source, several draws per item, and another training seed all make the true size larger.",
        "n is given only where it is public. It is assumed that the whole set was used.",
        "Graded scores (not right or wrong) are treated as if they were right or wrong.",
    )
    facts = Facts(
        (("columns", ", ".join(table.columns)), ("rows", str(len(table.rows))), ("source", table.source))
    )
    return Section("how", "Method", "How this was made", (OnlyFor(WRITTEN, (Bullets(lines), facts)),))
