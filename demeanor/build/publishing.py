"""A published table of scores rendered: page, Markdown, terminal. In: its file. Out: NAME.html, NAME.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console

from demeanor.build.measure import WIDTH, write
from demeanor.evaluation import published as tables
from demeanor.report import published


def is_table(path: Path) -> bool:
    """Whether a file is a published table and no result of ours: YAML, or JSON with columns."""
    if path.suffix in (".yaml", ".yml"):
        return True
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and "columns" in tree


def render(path: Path, page: Path | None = None) -> Path:
    """Print a published table, write its page and its Markdown, and return where the page lies."""
    tree = tables.tree(tables.load(path), path.stem)
    target = page or path.with_suffix(".html")
    write(target, published.page(tree))
    write(target.with_suffix(".md"), published.markdown(tree))
    published.show(tree, Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    print(f"\npage: {target}")
    return target
