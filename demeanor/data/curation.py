"""Raw rows of any source, in and out again: what the commands that curate data share.

In: a Source and where to look for it. Out: each row's columns with its place; a .jsonl file, written whole or not at all. Columns come
out as they went in. It decides nothing about a row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from demeanor.data.files import Bad
from demeanor.data.sources import Generated, Problems, Say, raw_rows, renamed
from demeanor.data.words import as_columns
from demeanor.errors import DataError, unknown
from demeanor.spec import Source


def columns(
    source: Source, *, root: Path, generated: Generated, say: Say = print
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The columns of the first `limit` rows with their place; raises DataError after the last if some cannot be read."""
    problems = Problems(source.source)
    for where, raw in islice(_raw(source, root, generated), source.limit):
        row = {"text": raw} if isinstance(raw, str) else raw
        try:
            if isinstance(row, Bad) or not isinstance(row, Mapping):
                raise ValueError(
                    row.why
                    if isinstance(row, Bad)
                    else f"got a {type(row).__name__}, wanted an object of columns"
                )
            named = dict(renamed(row, source.columns))
        except ValueError as error:
            problems.bad.append(f"{where}: {error}")
        else:
            problems.good += 1
            yield where, named
    problems.close(source.skip_bad, say)


def _raw(source: Source, root: Path, generated: Generated) -> Iterator[tuple[str, Any]]:
    name = source.source
    if not name.startswith("world:"):
        yield from raw_rows(source, root)
    elif name[6:] not in generated:
        raise DataError(unknown(name, [f"world:{n}" for n in generated], noun="source"))
    else:
        for number, row in enumerate(generated[name[6:]](), start=1):
            yield f"{name}: row {number}", as_columns(row)


def check_out(path: Path, *, force: bool) -> None:
    """Raise DataError if `path` cannot be written, before any work is done."""
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: rows are written as .jsonl; wanted a name that ends so")
    if path.exists() and not force:
        raise DataError(f"{path}: exists; give another name, or --force to overwrite it")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder; make it, or write elsewhere")


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as .jsonl, one a line, and return how many; the file appears when it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    try:
        with part.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count
