"""Files to raw rows, one at a time: .jsonl, .json, .csv, .txt, .parquet and .arrow files, folders of them, saved datasets.

In: a path. Out: (place, columns) pairs; a row that cannot be read is a Bad that says why, a file that cannot is a DataError.
What does not fit in memory is read in parts (.jsonl, .csv, .parquet, .arrow). It refuses to know what columns mean.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from demeanor.data import arrow
from demeanor.errors import DataError, unknown

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".txt", ".parquet", ".arrow")
FOLDERS = ("*.txt", "*.parquet")
_START = re.compile(r"^\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG EBOOK.*$", re.M)
_END = re.compile(
    r"^(?:\*\*\* ?END OF (?:THIS|THE) PROJECT GUTENBERG EBOOK|End of (?:the )?Project Gutenberg).*", re.M
)

RawRow = tuple[str, Any]


class Bad(NamedTuple):
    """Stands where a row should be that cannot be read."""

    why: str


def raw_rows(path: Path, split: str | None = None) -> Iterator[RawRow]:
    """Each row of a file or folder with its place; `split` chooses one of a saved dataset's.

    Raises DataError if there is no such file or it is of no known kind.
    """
    if path.is_dir():
        yield from _folder(path, split)
        return
    if not path.exists():
        beside = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise DataError(f"{path}: no such file or folder. {unknown(path.name, beside)}")
    readers = {
        ".jsonl": _jsonl,
        ".jsonl.gz": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".txt": _txt,
        ".parquet": arrow.parquet,
        ".arrow": arrow.stream,
    }
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), path.suffix)
    if suffix not in readers:
        raise DataError(
            f"{path}: unknown kind of file '{suffix}'; wanted {', '.join(SUFFIXES)}, or a folder of .txt or .parquet "
            "files, or a dataset saved by `datasets`"
        )
    yield from readers[suffix](path)


def _folder(path: Path, split: str | None) -> Iterator[RawRow]:
    if arrow.is_saved(path):
        yield from arrow.saved(path, split)
        return
    files = [
        file for pattern in FOLDERS for file in sorted(path.glob(pattern)) if not file.name.startswith(".")
    ]
    if not files:
        raise DataError(
            f"{path}: has no .txt files (and no .parquet files); wanted a folder of them, or a file ({', '.join(SUFFIXES)})"
        )
    for file in files:
        yield from raw_rows(file)


def _txt(path: Path) -> Iterator[RawRow]:
    """A text file's one row, without Project Gutenberg's header and licence."""
    text = _read(path)
    if start := _START.search(text):
        text = text[start.end() :]
        if end := _END.search(text):
            text = text[: end.start()]
    yield str(path), {"text": text.strip() if start else text}


def _jsonl(path: Path) -> Iterator[RawRow]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = Bad(f"not JSON: {error}; wanted one object per line")
        yield f"{path}:{number}", row


def _json(path: Path) -> Iterator[RawRow]:
    try:
        found = json.loads(_read(path))
    except json.JSONDecodeError as error:
        hint = "; it looks like one object per line: name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}{hint}") from None
    if isinstance(found, dict):
        found = _columns(path, found)
    if not isinstance(found, list):
        raise DataError(
            f"{path}: got a JSON {type(found).__name__}, wanted a list of rows, or an object of equally long columns"
        )
    for number, row in enumerate(found, start=1):
        yield f"{path}: row {number}", row


def _columns(path: Path, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = {name: len(values) if isinstance(values, list) else None for name, values in columns.items()}
    if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
        described = (
            ", ".join(f"{n}: {'no list' if size is None else size}" for n, size in lengths.items())
            or "nothing"
        )
        raise DataError(f"{path}: an object must hold equally long columns; got {described}")
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _csv(path: Path) -> Iterator[RawRow]:
    reader = csv.DictReader(_lines(path))
    try:
        if not reader.fieldnames:
            raise DataError(f"{path}: is empty; wanted a first line with column names")
        before = reader.line_num
        for row in reader:
            where, before = f"{path}:{before + 1}", reader.line_num
            if None in row or None in row.values():
                got = "more" if None in row else "fewer"
                yield where, Bad(f"got {got} fields than the {len(reader.fieldnames)} column names")
            else:
                yield where, {k: v for k, v in row.items() if v != ""}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _read(path: Path) -> str:
    return "".join(_lines(path))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends as \\n; a byte order mark and gzip are taken off. Raises DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            at = 0
            for raw in file:
                try:
                    yield (raw.decode("utf-8-sig") if at == 0 else raw.decode("utf-8")).replace("\r\n", "\n")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}: not UTF-8 text (byte {at + error.start}); save it as UTF-8"
                    ) from None
                at += len(raw)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
