"""Plain columns for listings that scripts may read: a heading and rows, each column as wide as its widest cell."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from demeanor.core.table import visible


def columns(heading: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines of a table; `right` are the columns whose cells are aligned to the right. No rows: no lines."""
    if not rows:
        return []
    table = [[visible(cell).replace("\n", " ") for cell in row] for row in (heading, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(heading))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
