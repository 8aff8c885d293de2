"""A report in a terminal. In: a Page, a Section or blocks, and a rich Console. Out: lines; no text of a model becomes markup.

A table that is wider than the terminal is printed in parts, each with the first column again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text as RichText

from demeanor.core.table import (
    Block,
    BlockGroup,
    Bullets,
    Facts,
    Figure,
    Fold,
    Inline,
    OnlyFor,
    Page,
    Paragraph,
    Section,
    StyledText,
    Table,
    visible,
)

WIDTH = 160
"""Columns where the output is not a terminal."""
TONES = {"up": "bold blue", "down": "bold red", "flat": "dim", "": ""}
STYLES = {"lead": "dim", "note": "dim", "heading": "bold"}


def console() -> Console:
    """The terminal, or a stream that is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def show_page(page: Page, out: Console) -> None:
    """Print the headline, what the sections say in short, and every reason for doubt."""
    out.print()
    out.print(RichText(visible(page.headline), "bold"))
    for section in page.sections:
        show(section, out)
    if page.caveats:
        out.print()
    for caveat in page.caveats:
        out.print(RichText.assemble(("! ", "bold yellow"), visible(caveat)))


def show(section: Section, out: Console) -> None:
    """Print a section under its title; nothing where all of it is for the page."""
    blocks = list(_printed(section.blocks))
    if blocks:
        out.print(RichText(f"\n{section.title}", "bold"))
        show_blocks(blocks, out)


def show_blocks(blocks: Iterable[Block], out: Console) -> None:
    """Print blocks, those left out that are for the page only."""
    for block in _printed(blocks):
        match block:
            case Table():
                _show_table(block, out)
            case Bullets():
                for item in block.items:
                    mark = ("▼ ", TONES["down"]) if block.style == "losses" else "- "
                    out.print(RichText.assemble(mark, _rich(item)))
            case Facts():
                for name, value in block.pairs:
                    out.print(RichText.assemble("  ", visible(name), " ", _rich(value)))
            case Fold():
                out.print(RichText.assemble("\n", _rich(block.summary)))
                show_blocks(block.blocks, out)
            case BlockGroup():
                show_blocks(block.blocks, out)
            case Paragraph():
                out.print(_rich(block.text, STYLES.get(block.style, "")))


def _printed(blocks: Iterable[Block]) -> Iterable[Block]:
    """The blocks that a terminal has: no figures, no introductions."""
    for block in blocks:
        match block:
            case OnlyFor():
                if "terminal" in block.outputs:
                    yield from _printed(block.blocks)
            case Figure() | Paragraph(style="lead"):
                pass
            case Fold() | BlockGroup():
                if list(_printed(block.blocks)):
                    yield block
            case Table(rows=()):
                pass
            case _:
                yield block


def _show_table(table: Table, out: Console) -> None:
    """Print a table, in parts where it is too wide."""
    cells = [[_cell(value) for value in row] for row in table.rows]
    most = max(16, min(44, out.width // len(table.text) - 2))
    widths = [_width(table, cells, n, most) for n in range(len(table.columns))]
    if table.title:
        out.print(RichText(f"\n{visible(table.title)}", "dim"))
    left = list(range(1, len(widths)))
    while True:
        shown, room = [0], out.width - widths[0]
        while left and (len(shown) == 1 or room >= widths[left[0]]):
            room -= widths[left[0]]
            shown.append(left.pop(0))
        out.print(_grid(table, cells, shown, widths))
        if not left:
            return


def _width(table: Table, cells: Sequence[Sequence[RichText]], n: int, most: int) -> int:
    """Columns that a column needs, two between it and the next included; headings are broken between words, long texts too."""
    needed = [len(word) for word in table.columns[n].split()]
    needed += [row[n].cell_len for row in cells if n < len(row)]
    return min(max(needed, default=0), most) + 2


def _grid(
    table: Table, cells: Sequence[Sequence[RichText]], columns: Sequence[int], widths: Sequence[int]
) -> RichTable:
    grid = RichTable(box=None, padding=(0, 2, 0, 0))
    for n in columns:
        heading = RichText(visible(table.columns[n]))
        grid.add_column(heading, width=widths[n] - 2, overflow="fold")
        grid.columns[-1].justify = "left" if n in table.text else "right"
    for row in cells:
        grid.add_row(*(row[n] if n < len(row) else RichText() for n in columns))
    return grid


def _cell(value: Inline) -> RichText:
    """A cell; a difference that is shown has a star, for terminals without colors."""
    parts = value if isinstance(value, tuple) else (value,)
    told = RichText()
    for part in parts:
        if isinstance(part, StyledText) and part.style == "change":
            told.append(" ")
        if isinstance(part, StyledText) and part.strong:
            part = replace(part, text=f"{part.text}*")
        told.append_text(_rich(part))
    return told


def _rich(text: Inline, style: str = "") -> RichText:
    told = RichText(style=style)
    for part in text if isinstance(text, tuple) else (text,):
        if isinstance(part, str):
            told.append(visible(part))
        elif not part.link and part.style != "aside":
            told.append(visible(part.text), _style(part))
    return told


def _style(part: StyledText) -> str:
    if part.style == "soft":
        return "dim"
    return TONES[part.tone] or ("bold" if part.strong else "")
