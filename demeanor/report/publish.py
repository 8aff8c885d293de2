"""Writes the page and the Markdown of a result with what lies beside it, and prints it.

In: results/NAME.json and NAME.KIND.json. Out: NAME.html, NAME.md and the table in the terminal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from demeanor.core.errors import DataError
from demeanor.core.files import write_text
from demeanor.evaluation import published as published_tables
from demeanor.evaluation.result import Result, load, load_tree
from demeanor.report import (
    attribution,
    base,
    diagnosis,
    duel,
    frontier,
    gate,
    markdown,
    published,
    seeds,
    terminal,
)
from demeanor.report import page as pages

EXTRAS = (
    ("gate", "Verdict", gate.gate, gate.markdown),
    ("attribution", "Attribution", attribution.attribution, attribution.markdown),
    ("base", "Base", base.base, base.markdown),
    ("frontier", "Frontier", frontier.frontier, frontier.markdown),
    ("diagnosis", "Diagnosis", diagnosis.diagnosis, diagnosis.markdown),
    ("duel", "Duels", duel.duel, duel.markdown),
    ("seeds", "Seeds", seeds.seeds, seeds.markdown),
)
"""What may lie beside NAME.json as NAME.KIND.json: kind, its name on the page, its section and its Markdown."""
WIDTH = 130
"""Columns of the table where the output is not a terminal."""


def show(result: Result, folder: Path, *, page: Path | None = None) -> Path:
    """Print the result, write its page and its Markdown, and return where the page lies."""
    shape = json.loads(result.to_json())
    target = page or folder / f"{result.name}.html"
    _publish(shape, folder, target)
    terminal.show(shape, Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    print(f"\npage: {target}")
    return target


def refresh(folder: Path, name: str, *, quiet: bool = False) -> None:
    """Write the page NAME.html again with what was added beside its result; says where, or what to do where there is no result."""
    path = folder / f"{name}.json"
    if not path.is_file():
        print(
            f"page: none yet, because there is no {path}. Write one with: demeanor eval STACK.yaml --name {name}"
        )
        return
    shape = json.loads(load(path).to_json())
    _publish(shape, folder, folder / f"{name}.html")
    here = [f"{name}.{kind}.json" for kind, *_ in EXTRAS if kind not in _beside(folder, shape)]
    foreign = ", ".join(file for file in here if (folder / file).is_file())
    if not quiet:
        why = (
            f", without {foreign}: measured on other items or another stack than {path.name}"
            if foreign
            else ""
        )
        print(f"page: {folder / name}.html{why}")


def _publish(shape: Any, folder: Path, target: Path) -> None:
    """Write the page and its Markdown, with what lies beside the result and was measured on the same suite and stack."""
    found = _beside(folder, shape)
    sections = [(kind, title, make(found[kind])) for kind, title, make, _ in EXTRAS if kind in found]
    write_text(target, pages.page(shape, sections, gate.verdict(found["gate"]) if "gate" in found else None))
    texts = [
        markdown.markdown(shape),
        *(text(found[kind]) + "\n" for kind, _, _, text in EXTRAS if kind in found),
    ]
    write_text(target.with_suffix(".md"), "\n".join(texts))


def _beside(folder: Path, shape: Any) -> dict[str, Any]:
    """The trees NAME.KIND.json that belong to a result, by kind."""
    found = {}
    for kind, *_ in EXTRAS:
        path = folder / f"{shape['name']}.{kind}.json"
        if not path.is_file():
            continue
        try:
            tree = load_tree(path)
        except DataError as error:
            print(f"page: without {path.name}: {error}")
            continue
        hashes = tree.get("hashes", {})
        suite = tree.get("suite_hash", hashes.get("suite"))
        key = tree.get("stack_key", hashes.get("candidate"))
        if suite == shape["suite_hash"] and key in (None, shape["settings"].get("stack key")):
            found[kind] = tree
    return found


def render(path: Path, page: Path | None = None) -> Path:
    """Print a published table, write its page and its Markdown, and return where the page lies."""
    tree = published_tables.as_tree(published_tables.load(path), path.stem)
    target = page or path.with_suffix(".html")
    write_text(target, published.page(tree))
    write_text(target.with_suffix(".md"), published.markdown(tree))
    published.show(tree, Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH))
    print(f"\npage: {target}")
    return target


def duels_on_page(folder: Path, name: str, suite_hash: str) -> bool:
    """Write NAME.html again if NAME.json was measured on the same suite; says why not."""
    path = folder / f"{name}.json"
    if path.is_file() and load(path).suite_hash != suite_hash:
        print(
            f"page: {name}.html is about another suite, so the duels are not on it; choose a --name of their own to keep both"
        )
        return False
    refresh(folder, name)
    return path.is_file()
