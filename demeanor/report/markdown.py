"""A report as Markdown, for a README, an issue or a release note. In: a Page or a Section. Out: text without figures.

Text of models and files becomes no tag, no cell border and no second line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from demeanor.core.table import (
    Block,
    BlockGroup,
    Bullets,
    Facts,
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


def page(page: Page) -> str:
    """The headline, every reason for doubt, and all sections."""
    parts = [f"# {_safe(page.headline)}", *(f"> {_safe(caveat)}" for caveat in page.caveats)]
    parts += [text for section in page.sections if (text := markdown(section))]
    if page.source:
        parts.append(_safe(page.source))
    return "\n\n".join(parts) + "\n"


def markdown(section: Section) -> str:
    """A section under its title; empty where all of it is for the page."""
    parts = list(_blocks(section.blocks))
    return "\n\n".join([f"## {_safe(section.title)}", *parts]) if parts else ""


def _blocks(blocks: Iterable[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case OnlyFor():
                if "markdown" in block.outputs:
                    yield from _blocks(block.blocks)
            case BlockGroup():
                yield from _blocks(block.blocks)
            case Fold():
                inside = list(_blocks(block.blocks))
                if inside:
                    yield from (f"**{_inline(block.summary, strong=False)}**", *inside)
            case Table():
                yield from _table(block)
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


def _table(table: Table) -> Iterator[str]:
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
