"""Readers of data files: .jsonl, .json, .csv, .txt, .parquet, .arrow, saved datasets, and Hugging Face hub
ids.

In: a path, or a hub id with its config, split and revision. Out: (place, columns) pairs, read in parts. Keys
that Arrow filled with null, because another row has them, are removed. Only hub ids cause downloads.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from demeanor.core.errors import DataError, unknown

HUB = re.compile(r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
INSTALL = "pip install 'demeanor[hub]'"
ROWS = 1000  # rows held in memory at once


def parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a .parquet file; raises DataError if it is not one."""
    with _reading(path):
        file = _library("pyarrow.parquet", path).ParquetFile(path)
        yield from _numbered(path, (row for batch in file.iter_batches(ROWS) for row in batch.to_pylist()))


def stream(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of an .arrow file in the stream or the file format; raises DataError otherwise."""
    with _reading(path):
        pyarrow = _library("pyarrow", path)
        ipc = _library("pyarrow.ipc", path)
        with pyarrow.memory_map(str(path)) as file:
            if path.open("rb").read(6) == b"ARROW1":
                table = ipc.open_file(file)
                batches: Iterable[Any] = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                batches = ipc.open_stream(file)
            yield from _numbered(path, (row for batch in batches for row in batch.to_pylist()))


def is_saved(folder: Path) -> bool:
    """True if the folder is a dataset that `datasets` saved."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved(folder: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a saved dataset; raises DataError if it has several splits and none is named."""
    with _reading(folder):
        found = _library("datasets", folder).load_from_disk(str(folder))
        if (folder / "dataset_dict.json").is_file():
            found = found[_split(str(folder), list(found), split)]
        elif split is not None:
            raise DataError(
                f"{folder}: got split '{split}', but it is a dataset without splits; leave split out"
            )
        yield from _numbered(folder, iter(found))


def hub(source: str, config: str | None, split: str | None, *, lazily: bool) -> Iterator[tuple[str, Any]]:
    """Yield the rows of `hf:owner/name[@revision]`, downloaded and cached, or read over the network
    (`lazily`).

    Without `split` it is `train`, or the only one. Raises DataError if the hub does not provide it.
    """
    match = HUB.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: wanted hf:owner/name or hf:owner/name@revision")
    yield from loaded(match["name"], source, config, split, match["revision"], lazily=lazily)


def loaded(
    name: str, where: str, config: str | None, split: str | None, revision: str | None = None, *, lazily: bool
) -> Iterator[tuple[str, Any]]:
    """Yield the rows of what `datasets` calls `name`: a hub id, or a local folder of data files."""
    datasets = _library("datasets", where)
    with _reading(where):
        splits = datasets.get_dataset_split_names(name, config, revision=revision)
        chosen = _split(where, splits, split)
        rows = datasets.load_dataset(name, config, split=chosen, revision=revision, streaming=lazily)
        yield from _numbered(where, iter(rows))


def bare(value: Any) -> Any:
    """Return a value of Arrow as JSON has it: dates, decimals and UTF-8 bytes as text, no null keys.

    Arrow gives every object of a column the keys of all. What JSON cannot hold stays as it is.
    """
    if isinstance(value, Mapping):
        return {k: bare(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [bare(v) for v in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta | UUID):
        return str(value)
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode("utf-8")
    return value


def foreign(value: Any) -> str | None:
    """Return the name of a type in a value that JSON cannot hold, None if there is none."""
    if isinstance(value, Mapping):
        return next((kind for v in value.values() if (kind := foreign(v)) is not None), None)
    if isinstance(value, list):
        return next((kind for v in value if (kind := foreign(v)) is not None), None)
    return None if value is None or isinstance(value, str | int | float) else type(value).__name__


def _split(where: str, splits: list[str], split: str | None) -> str:
    wanted = split or ("train" if "train" in splits or len(splits) != 1 else splits[0])
    if wanted not in splits:
        raise DataError(f"{where}: {unknown(wanted, splits, noun='split')} Name one of them as `split`.")
    return wanted


def _numbered(where: Path | str, rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield f"{where}: row {number}", bare(row)


def _library(name: str, where: Path | str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{where}: reading it needs {name.partition('.')[0]}: {INSTALL}") from None


@contextmanager
def _reading(where: Path | str) -> Iterator[None]:
    """Turn any exception of a library into a DataError that names the file."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {type(error).__name__}: {error}") from None


SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
FOLDERS = ("*.txt", "*.parquet")
_START = re.compile(r"^\*\*\* ?START OF (?:THIS|THE) PROJECT GUTENBERG EBOOK.*$", re.M)
_END = re.compile(
    r"^(?:\*\*\* ?END OF (?:THIS|THE) PROJECT GUTENBERG EBOOK|End of (?:the )?Project Gutenberg).*", re.M
)

_CR = re.compile(r"(?<=\r)(?!\n)")  # after a line end of old Macs
UTF16 = (b"\xff\xfe", b"\xfe\xff")  # its byte order marks

RawRow = tuple[str, Any]


class Bad(NamedTuple):
    """An unreadable row, in place of its columns."""

    why: str


def raw_rows(path: Path, split: str | None = None) -> Iterator[RawRow]:
    """Yield each row of a file or folder with its place; `split` selects one of a saved dataset.

    Raises DataError if the file does not exist or is of an unknown kind.
    """
    if path.is_dir():
        yield from _folder(path, split)
        return
    if not path.exists():
        siblings = [sibling.name for sibling in path.parent.glob("[!.]*")]
        raise DataError(f"{path}: no such file or folder. {unknown(path.name, siblings, noun='file')}")
    readers = {
        ".jsonl": _jsonl,
        ".jsonl.gz": _jsonl,
        ".json": _json,
        ".csv": _csv,
        ".tsv": _csv,
        ".txt": _txt,
        ".parquet": parquet,
        ".arrow": stream,
    }
    suffix = next((s for s in SUFFIXES if path.name.endswith(s)), path.suffix)
    if suffix not in readers:
        raise DataError(
            f"{path}: unknown kind of file '{suffix}'; wanted {', '.join(SUFFIXES)}, "
            "or a folder of .txt or .parquet files, or a dataset saved by `datasets`"
        )
    yield from readers[suffix](path)


def _folder(path: Path, split: str | None) -> Iterator[RawRow]:
    if is_saved(path):
        yield from saved(path, split)
        return
    files = [
        file for pattern in FOLDERS for file in sorted(path.glob(pattern)) if not file.name.startswith(".")
    ]
    if not files:
        raise DataError(
            f"{path}: has no .txt files (and no .parquet files); wanted a folder of them, "
            f"or a file ({', '.join(SUFFIXES)})"
        )
    for file in files:
        yield from raw_rows(file)


def _txt(path: Path) -> Iterator[RawRow]:
    """Yield a text file's one row, without Project Gutenberg's header and licence."""
    text = _text(path)
    if start := _START.search(text):
        text = text[start.end() :]
        if end := _END.search(text):
            text = text[: end.start()]
    yield str(path), {"text": text.strip() if start else text}


def _jsonl(path: Path) -> Iterator[RawRow]:
    for number, line in enumerate(_lines(path, strict=False), start=1):
        if isinstance(line, Bad):
            yield f"{path}:{number}", line
            continue
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = Bad(f"not JSON: {error}; wanted one object per line")
        yield f"{path}:{number}", row


def _json(path: Path) -> Iterator[RawRow]:
    try:
        found = json.loads(_text(path))
    except json.JSONDecodeError as error:
        hint = "; it looks like one object per line: name it .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read: {error}") from None
    if isinstance(found, dict):
        found = _columns(path, found)
    if not isinstance(found, list):
        raise DataError(
            f"{path}: got a JSON {type(found).__name__}, wanted a list of rows, "
            "or an object of equally long columns"
        )
    for number, row in enumerate(found, start=1):
        yield f"{path}: row {number}", row


def _columns(path: Path, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lengths = {name: len(values) if isinstance(values, list) else None for name, values in columns.items()}
    if not lengths or None in lengths.values() or len(set(lengths.values())) > 1:
        sizes = [f"{n}: {'no list' if size is None else size}" for n, size in lengths.items()]
        raise DataError(
            f"{path}: an object must hold equally long columns; got {', '.join(sizes) or 'nothing'}"
        )
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _csv(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # the library refuses fields of more than 131,072 characters
    lines: list[str] = []  # of the row that is read

    def kept() -> Iterator[str]:
        for line in _lines(path):
            for part in filter(None, _CR.split(str(line))):
                lines.append(part)
                yield part

    reader = csv.DictReader(kept(), delimiter=_delimiter(path))
    try:
        if not reader.fieldnames:
            raise DataError(f"{path}: is empty; wanted a first line with column names")
        before = reader.line_num
        lines.clear()
        for row in reader:
            where, before = f"{path}:{before + 1}", reader.line_num
            if None in row or None in row.values():
                got = "more" if None in row else "fewer"
                yield where, Bad(f"got {got} fields than the {len(reader.fieldnames)} column names")
            elif len(lines) > 1 and "".join(lines).count('"') % 2:
                yield where, Bad(f"a quotation mark opens {len(lines)} lines and none closes them")
            else:
                yield where, {k: v for k, v in row.items() if v != ""}
            lines.clear()
    except csv.Error as error:
        raise DataError(f"{path}:{max(1, reader.line_num)}: not CSV: {error}") from None


def _delimiter(path: Path) -> str:
    """What separates the column names of the first line: a comma, else a semicolon (many spreadsheets) or a tab."""
    first = re.sub(r'"[^"]*"', "", str(next(_lines(path), "")))
    return next((mark for mark in ",;\t" if mark in first), ",")


def _text(path: Path) -> str:
    return "".join(line for line in _lines(path) if isinstance(line, str))


def _lines(path: Path, *, strict: bool = True) -> Iterator[str | Bad]:
    """Yield the lines of a UTF-8 file with ends as LF, without byte order mark and gzip.

    Raises DataError; unless `strict`, a line that is no UTF-8 is Bad instead.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            at = 0
            for number, raw in enumerate(file, start=1):
                if at == 0 and raw.startswith(UTF16):
                    raise DataError(f"{path}:1: not UTF-8 text but UTF-16; save it as UTF-8")
                try:
                    yield raw.decode("utf-8-sig" if at == 0 else "utf-8").replace("\r\n", "\n")
                except UnicodeDecodeError as error:
                    why = f"not UTF-8 text (byte {at + error.start}); save it as UTF-8"
                    if strict:
                        raise DataError(f"{path}:{number}: {why}") from None
                    yield Bad(why)
                at += len(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
