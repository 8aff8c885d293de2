"""Data sources to rows: .jsonl, .json, .csv and .txt files, folders of .txt files, and generated rows (`world:NAME`).

In: a declared Source. Out: Examples or Preferences, each knowing its file and line. Nothing is skipped silently: rows that
cannot be used are one DataError that lists them. It renders and tokenizes nothing.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from demeanor.data.rows import COLUMNS, Want, parse
from demeanor.errors import DataError, unknown
from demeanor.spec import Source
from demeanor.types import Example, Preference, TrainingRow, Unpaired

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".txt")
LISTED = 8      # bad rows that an error names one by one
_START = re.compile(r"^\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG EBOOK.*$", re.M)
_END = re.compile(r"^(?:\*\*\* ?END OF (?:THIS|THE) PROJECT GUTENBERG EBOOK|End of (?:the )?Project Gutenberg).*", re.M)

Generated = Mapping[str, Callable[[], Iterable[TrainingRow]]]
T = TypeVar("T")
KINDS: Mapping[Want, tuple[type[TrainingRow], ...]] = {
    "examples": (Example,), "text": (Example,), "preferences": (Preference,), "unpaired": (Unpaired, Preference)}


def rows(source: Source, *, root: Path, generated: Generated, want: Want = "examples") -> list[TrainingRow]:
    """Read a source: its first `limit` rows, then `weight` times as many (whole repeats, and a fixed draw for the rest).

    `generated` holds the rows of `world:NAME` under NAME. Raises DataError with file, line, what is wrong and what was wanted.
    """
    name = source.source
    if name.startswith("world:"):
        found = _generated(name, generated, want, source.limit)
    else:
        found = _parsed(root / name, want, source.limit)
    if not found:
        raise DataError(f"{name}: has no rows; wanted {COLUMNS[want]}")
    return weighted(found, source.weight, name)


def weighted(found: Sequence[T], weight: float, name: str) -> list[T]:
    """Repeat or thin rows to round(weight x rows), at least one; which ones are kept depends on `name` alone."""
    count = max(1, round(weight * len(found)))
    whole, part = divmod(count, len(found))
    kept = sorted(random.Random(name).sample(range(len(found)), part))
    return list(found) * whole + [found[i] for i in kept]


def _generated(name: str, generated: Generated, want: Want, limit: int | None) -> list[TrainingRow]:
    if name[6:] not in generated:
        raise DataError(unknown(name, [f"world:{n}" for n in generated], noun="source"))
    found = list(islice(generated[name[6:]](), limit))
    for i, row in enumerate(found):
        fits = isinstance(row, KINDS[want])
        if not fits or (want == "text" and isinstance(row, Example) and row.text is None):
            raise DataError(f"{name}: row {i + 1}: got {_kind(row)}, wanted {want}")
    return found


def _kind(row: TrainingRow) -> str:
    if not isinstance(row, Example):
        return "a preference" if isinstance(row, Preference) else "a completion with a label"
    return "a text" if row.text is not None else "a conversation"


def _parsed(path: Path, want: Want, limit: int | None) -> list[TrainingRow]:
    found: list[TrainingRow] = []
    problems: list[str] = []
    for where, raw in islice(_raw_rows(path), limit):
        try:
            found.append(parse(raw, want, where))
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        more = [f"and {len(problems) - LISTED} more"] if len(problems) > LISTED else []
        total = len(problems) + len(found)
        lines = [problems[0]] if len(problems) == 1 else [f"{path}: {len(problems)} of {total} rows cannot be used:",
                                                          *problems[:LISTED], *more]
        raise DataError("\n  ".join(lines))
    return found


def _raw_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row of a file or folder with its place; raises DataError if there is no such file or it is of no known kind."""
    if path.is_dir():
        files = sorted(p for p in path.glob("*.txt") if not p.name.startswith("."))
        if not files:
            raise DataError(f"{path}: has no .txt files; wanted a folder of texts, or a file ({', '.join(SUFFIXES)})")
        for file in files:
            yield str(file), _document(file)
        return
    if not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file or folder. {unknown(path.name, beside)}")
    readers = {".jsonl": _jsonl, ".jsonl.gz": _jsonl, ".json": _json, ".csv": _csv}
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), path.suffix)
    if suffix == ".txt":
        yield str(path), _document(path)
    elif suffix in readers:
        yield from readers[suffix](path)
    else:
        raise DataError(f"{path}: unknown kind of file '{suffix}'; wanted {', '.join(SUFFIXES)} or a folder of .txt files")


def _document(path: Path) -> dict[str, str]:
    """A text file's row, without Project Gutenberg's header and licence."""
    text = _read(path)
    if start := _START.search(text):
        text = text[start.end():]
        if end := _END.search(text):
            text = text[:end.start()]
    return {"text": text.strip() if start else text}


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{path}:{number}", json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}; wanted one object per line") from None


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        found = json.loads(_read(path))
    except json.JSONDecodeError as error:
        hint = "; it looks like one object per line: name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}{hint}") from None
    if isinstance(found, dict):
        found = _columns(path, found)
    if not isinstance(found, list):
        raise DataError(f"{path}: got a JSON {type(found).__name__}, wanted a list of rows, or an object of equally long columns")
    for number, row in enumerate(found, start=1):
        yield f"{path}: row {number}", row


def _columns(path: Path, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = {name: len(values) if isinstance(values, list) else None for name, values in columns.items()}
    if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
        described = ", ".join(f"{n}: {'no list' if size is None else size}" for n, size in lengths.items()) or "nothing"
        raise DataError(f"{path}: an object must hold equally long columns; got {described}")
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(_read(path), newline=""))
    if not reader.fieldnames:
        raise DataError(f"{path}: is empty; wanted a first line with column names")
    before = reader.line_num
    for row in reader:
        where, before = f"{path}:{before + 1}", reader.line_num
        if None in row or None in row.values():
            got = "more" if None in row else "fewer"
            raise DataError(f"{where}: got {got} fields than the {len(reader.fieldnames)} column names")
        yield where, {k: v for k, v in row.items() if v != ""}


def _read(path: Path) -> str:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
