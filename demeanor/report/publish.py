"""Prints a result and writes its page and its Markdown, with the sections of what lies beside it.

In: results/NAME.json and NAME.KIND.json. Out: NAME.html, NAME.md and the tables in the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from demeanor.core.errors import DataError
from demeanor.core.files import write_text
from demeanor.core.table import Page, Paragraph, Section
from demeanor.evaluation import (
    attribution,
    base_prompting,
    duel,
    frontier,
    gate,
    ladder_report,
    matchups,
    published,
    seeds,
    tax,
    turn_replay,
)
from demeanor.evaluation.diagnosis import analysis as diagnosis
from demeanor.evaluation.diagnosis import complaints
from demeanor.evaluation.result import Result, load, load_tree
from demeanor.report import outputs

T = TypeVar("T")
Identity: TypeAlias = tuple[str, str | None]
"""Suite and stack key that a result was measured on."""


def _typed(kind: type[T], section: Callable[[T], Section], tree: Mapping[str, Any]) -> Section:
    return section(TypeAdapter(kind).validate_python(tree))


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], Section]] = {
    "gate": lambda tree: gate.section(gate.read_record(tree)),
    "attribution": partial(_typed, attribution.Attribution, attribution.section),
    "base": partial(_typed, base_prompting.BasePrompting, base_prompting.section),
    "frontier": partial(_typed, frontier.Frontier, frontier.section),
    "diagnosis": partial(_typed, diagnosis.Diagnosis, diagnosis.section),
    "complaints": partial(_typed, complaints.RoutedComplaints, complaints.section),
    "duel": partial(_typed, matchups.DuelResult, duel.section),
    "replay": partial(_typed, turn_replay.TurnReplay, turn_replay.section),
    "seeds": partial(_typed, seeds.Seeds, seeds.section),
    "tax": partial(_typed, tax.TaxCurve, tax.section),
}
"""What may lie beside NAME.json as NAME.KIND.json: its section, from its JSON."""


def show(result: Result, folder: Path, *, page: Path | None = None) -> Path:
    """Print the result, write its page and its Markdown, and return where the page lies."""
    whole = ladder_report.page(result)
    target = page or folder / f"{result.name}.html"
    _write(_with_others(whole, folder, result.name, _identity(result)), target)
    outputs.show_page(whole, outputs.console())
    print(f"\npage: {target}")
    return target


def show_section(folder: Path, name: str, kind: str) -> None:
    """Print what was just written as NAME.KIND.json, say where it lies, and write the page again with it."""
    section, _ = _read(folder, name, kind)
    outputs.show(section, outputs.console())
    print(f"\nwritten: {folder / name}.{kind}.json")
    refresh(folder, name, kind)


def refresh(folder: Path, name: str, kind: str = "", *, quiet: bool = False) -> None:
    """Write NAME.html again with all that lies beside NAME.json; without that file, with what belongs to NAME.KIND.json."""
    path, target = folder / f"{name}.json", folder / f"{name}.html"
    note = ""
    if path.is_file() or not kind:
        result = load(path)
        whole = _with_others(ladder_report.page(result), folder, name, _identity(result))
    else:
        section, identity = _read(folder, name, kind)
        headline = section.verdict[1] if section.verdict else section.title
        whole = _with_others(Page(f"{name}: {headline}", name, headline, ()), folder, name, identity)
        note = f"; to add what each layer did: demeanor eval STACK.yaml --name {name}"
    _write(whole, target)
    shown = {section.anchor for section in whole.sections}
    files = [f"{name}.{other}.json" for other in SECTIONS if other not in shown]
    left_out = ", ".join(file for file in files if (folder / file).is_file())
    if left_out:
        note += f"; without {left_out}: measured on other items or another stack (give all verbs the same --limit and --set, or it a --name of its own)"
    if not quiet:
        print(f"page: {target}{note}")


def _read(folder: Path, name: str, kind: str) -> tuple[Section, Identity]:
    """The section of NAME.KIND.json, and what it was measured on; raises DataError."""
    path = folder / f"{name}.{kind}.json"
    tree = load_tree(path)
    hashes = tree.get("hashes", {})
    identity = tree.get("suite_hash", hashes.get("suite", "")), tree.get("stack_key", hashes.get("candidate"))
    try:
        return SECTIONS[kind](tree), identity
    except (ValidationError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a result of this version of demeanor ({type(error).__name__}); measure again"
        ) from error


def _identity(result: Result) -> Identity:
    key = result.settings.get("stack key")
    return result.suite_hash, None if key is None else str(key)


def _with_others(whole: Page, folder: Path, name: str, identity: Identity) -> Page:
    """The page with the sections of all NAME.KIND.json that were measured on the same suite and stack."""
    found = []
    for kind in SECTIONS:
        path = folder / f"{name}.{kind}.json"
        if not path.is_file():
            continue
        try:
            section, (suite, key) = _read(folder, name, kind)
        except DataError as error:
            print(f"page: without {path.name}: {error}")
            continue
        if suite == identity[0] and key in (None, identity[1]):
            found.append(section)
    first = [section for section in whole.sections if section.anchor not in ladder_report.APPENDIX]
    last = [section for section in whole.sections if section.anchor in ladder_report.APPENDIX]
    return replace(whole, sections=(*first, *found, *last))


def write_section(section: Section, tree: Any, target: Path) -> None:
    """Write a section alone as a page, its Markdown, and `tree` (what it shows) as JSON beside it."""
    headline = next((str(b.text) for b in section.blocks if isinstance(b, Paragraph)), section.title)
    _write(Page(section.title, "", headline, (section,)), target)
    write_text(
        target.with_suffix(".json"),
        TypeAdapter(type(tree)).dump_json(tree, indent=1).decode() + "\n",
    )


def _write(page: Page, target: Path) -> None:
    write_text(target, outputs.html_page(page))
    write_text(target.with_suffix(".md"), outputs.markdown_page(page))


def render(path: Path, page: Path | None = None) -> Path:
    """Print a published table, write its page and its Markdown, and return where the page lies."""
    whole = published.page(published.load(path))
    target = page or path.with_suffix(".html")
    _write(whole, target)
    outputs.show_page(whole, outputs.console())
    print(f"\npage: {target}")
    return target
