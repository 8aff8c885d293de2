"""A report in its three outputs: lines of a terminal, one self-contained HTML page, Markdown.

In: a Page, a Section or blocks. Out: text; text of models and files becomes no markup, tag, cell border or
second line. The HTML page needs no network and no script: everything that opens is a <details>.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
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
    plain,
    visible,
)
from demeanor.report import glossary
from demeanor.report.figures import draw

# ---- terminal: a table that is wider than it is printed in parts, each with the first column again ----

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


# ---- HTML ----

FOLDER = Path(__file__).parent
ROWS_ON_PAPER, CHARACTERS_ON_PAPER = 150, 600
"""What is printed of a long table and of a long text; the page has all of them."""
LONG_WORD = re.compile(r"\S{24}(?=\S)")
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"


def html_page(page: Page) -> str:
    """The whole page; a content security policy allows its own style sheet, by hash, and nothing else."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"{POLICY}; style-src 'sha256-{allowed}'"
    given = {"page": page, "style": Markup(style), "policy": policy}
    words = tuple(glossary.used(_template().render(**given, words=())))
    return _template().render(**given, words=words)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "draw": draw,
        "kind": lambda block: type(block).__name__,
        "parts": _parts,
        "linked": glossary.linked,
        "words": plain,
        "bounds": _bounds,
        "breakable": _breakable,
    }
    environment.globals |= {"rows_on_paper": ROWS_ON_PAPER, "characters_on_paper": CHARACTERS_ON_PAPER}
    return environment.get_template("page.html.jinja")


def _shown(value: Any) -> Any:
    """Whatever is not markup already, with control characters written out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _parts(text: Any) -> tuple[Any, ...]:
    """The pieces of a sentence or a cell."""
    return text if isinstance(text, tuple) else (text,)


def _breakable(text: str) -> Markup:
    """Text in which a word of more than 24 characters may be broken, so that none makes a table wider than paper."""
    marked = LONG_WORD.sub(lambda found: f"{found[0]}\0", visible(text))  # visible text has no \0 of its own
    return Markup("<wbr/>").join(marked.split("\0"))


def _bounds(hint: str) -> str:
    """The interval in a tooltip, for paper and for screens without a pointer; empty if it has none."""
    found = re.search(r"[(]([^()]* to [^()]*)[)]", hint) or re.search(r"^(.* to .*) points$", hint)
    return found[1] if found else ""


# ---- Markdown: without figures ----


def markdown_page(page: Page) -> str:
    """The headline, every reason for doubt, and all sections."""
    parts = [f"# {_safe(page.headline)}", *(f"> {_safe(caveat)}" for caveat in page.caveats)]
    parts += [text for section in page.sections if (text := markdown(section))]
    if page.source:
        parts.append(_safe(page.source))
    return "\n\n".join(parts) + "\n"


def markdown(section: Section) -> str:
    """A section under its title; empty where all of it is for the page."""
    parts = list(_markdown_blocks(section.blocks))
    return "\n\n".join([f"## {_safe(section.title)}", *parts]) if parts else ""


def _markdown_blocks(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case OnlyFor():
                if "markdown" in block.outputs:
                    yield from _markdown_blocks(block.blocks)
            case BlockGroup():
                yield from _markdown_blocks(block.blocks)
            case Fold():
                inside = list(_markdown_blocks(block.blocks))
                if inside:
                    yield from (f"**{_inline(block.summary, strong=False)}**", *inside)
            case Table():
                yield from _pipe_table(block)
            case Bullets():
                if block.items:
                    yield "\n".join(f"* {_inline(item)}" for item in block.items)
            case Facts():
                yield "\n".join(f"* {_safe(name)}: {_inline(value)}" for name, value in block.pairs)
            case Paragraph(style="heading"):
                yield f"### {_inline(block.text)}"
            case Paragraph(style="code"):
                yield "\n".join(f"    {_safe(line)}" for line in plain(block.text).splitlines())
            case Paragraph():
                yield _inline(block.text)


def _pipe_table(table: Table) -> Iterator[str]:
    """A pipe table; columns of numbers are right-aligned."""
    if not table.rows:
        return
    columns = (table.title or table.columns[0], *table.columns[1:])
    rules = ("---" if n in table.text else "--:" for n in range(len(table.columns)))
    lines = [" | ".join(map(_safe, columns)), " | ".join(rules)]
    for row in table.rows:
        lines.append(" | ".join([*map(_inline, row), *([""] * (len(table.columns) - len(row)))]))
    yield "\n".join(f"| {line} |" for line in lines)


def _inline(text: Inline, *, strong: bool = True) -> str:
    parts = text if isinstance(text, tuple) else (text,)
    return "".join(_part(part, strong) for part in parts)


def _part(part: str | StyledText, strong: bool) -> str:
    if isinstance(part, str):
        return _safe(part)
    if part.link or part.style == "aside":
        return ""
    told = _safe(part.text)
    if part.style == "code":
        told = f"`{told}`"
    elif part.strong and strong:
        told = f"**{told}**"
    if part.style == "change":
        return f" ({told})"
    return told


def _safe(text: str) -> str:
    """Text of a model or a file: no tag, no cell border, one line."""
    return visible(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
