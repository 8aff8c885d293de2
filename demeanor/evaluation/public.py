"""Public sets by path: which reader knows a file, and which files of a folder are suites.

In: a file or a folder. Out: (line, item or mistake) pairs, or None where no reader knows the file. What a file is follows from the fields
of its first row; a new set is one new file in `readers/` with `FIELDS` and `read`, and with
`recognises` where the fields alone do not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from demeanor import registry
from demeanor.errors import DataError
from demeanor.evaluation.readers._file import SUFFIXES, File
from demeanor.types import Item

READERS = "demeanor.evaluation.readers"
OWN = frozenset({"messages", "scorer"})
"""Fields of our own items."""
COMPANIONS: tuple[frozenset[str], ...] = (
    frozenset({"name", "system_prompt", "prompt_template"}),
    frozenset({"chunk_link", "chunk_heading", "text"}),
    frozenset({"id", "ground_truth"}),
    frozenset({"completion", "final_label"}),
)
"""Files that lie beside a set and are none: judge prompts, documents, possible answers, labelled answers of other models."""


def reader(path: Path) -> Iterator[tuple[int, Item | str]] | None:
    """The items of a public set's file, or None if no reader knows it; raises DataError where it is no suite of ours either."""
    file = File(path)
    if path.suffix == ".csv" and {"prompt", "label"} <= set(file.first):
        return None  # XSTest, which suite.py reads
    for name in registry.known(READERS):
        module = registry.entry(READERS, name)
        if recognised(module, file):
            found: Iterator[tuple[int, Item | str]] = module.read(file)
            return found
    if path.suffix == ".csv" or not file.first or OWN & set(file.first):
        return None
    raise DataError(
        f"{path}: no suite: its first row has the fields {', '.join(file.first)}. Wanted items "
        f"({', '.join(sorted(OWN))}, ...) or the fields of a public set: {known()}."
    )


def recognised(module: ModuleType, file: File) -> bool:
    """Does a reader know this file: by all its fields, or as the reader itself says?"""
    own = getattr(module, "recognises", None)
    return bool(own(file.first)) if own is not None else set(module.FIELDS) <= set(file.first)


def known() -> str:
    """The sets with the fields that tell them."""
    return "; ".join(
        f"{name} ({', '.join(registry.entry(READERS, name).FIELDS)})" for name in registry.known(READERS)
    )


def files(folder: Path) -> list[Path]:
    """The data files of a folder that are suites, by name; raises DataError if there is none."""
    data = sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and p.name.endswith(SUFFIXES) and not p.name.startswith(".")
    )
    suites = [p for p in data if not any(fields <= set(File(p).first) for fields in COMPANIONS)]
    if not suites:
        raise DataError(
            f"{folder}: no suite in this folder: {', '.join(p.name for p in data) or 'no ' + ', '.join(SUFFIXES) + ' file'}"
        )
    return suites
