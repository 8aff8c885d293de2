"""Arrow tables to raw rows: .parquet and .arrow files, datasets that `datasets` saved to disk, and Hugging Face hub ids.

In: a path, or a hub id with its config, split and revision. Out: (place, columns) pairs, read in parts; keys that Arrow filled with
null, because another row has them, are taken off again. Nothing is downloaded unless a hub id is named.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from demeanor.errors import DataError, unknown

HUB = re.compile(r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?")
INSTALL = "pip install 'demeanor[hub]'"
ROWS = 1000  # rows held in memory at once


def parquet(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a .parquet file; raises DataError if it is none."""
    with _reading(path):
        file = _library("pyarrow.parquet", path).ParquetFile(path)
        yield from _numbered(path, (row for batch in file.iter_batches(ROWS) for row in batch.to_pylist()))


def stream(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of an .arrow file, in the stream or the file format; raises DataError if it is neither."""
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
    """Whether `datasets` saved a dataset there."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def saved(folder: Path, split: str | None) -> Iterator[tuple[str, Any]]:
    """The rows of a dataset saved to disk; raises DataError if it has several splits and none is named."""
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
    """The rows of `hf:owner/name[@revision]`, downloaded once and cached by `datasets`, or read over the network (`lazily`).

    Without `split` it is `train`, or the only one. Raises DataError if the hub does not give it.
    """
    match = HUB.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: wanted hf:owner/name or hf:owner/name@revision")
    yield from loaded(match["name"], source, config, split, match["revision"], lazily=lazily)


def loaded(
    name: str, where: str, config: str | None, split: str | None, revision: str | None = None, *, lazily: bool
) -> Iterator[tuple[str, Any]]:
    """The rows of what `datasets` calls `name`: a hub id, or a local folder of data files."""
    datasets = _library("datasets", where)
    with _reading(where):
        splits = datasets.get_dataset_split_names(name, config, revision=revision)
        chosen = _split(where, splits, split)
        yield from _numbered(
            where,
            iter(datasets.load_dataset(name, config, split=chosen, revision=revision, streaming=lazily)),
        )


def bare(value: Any) -> Any:
    """A value without the keys that hold null: Arrow gives every object of a column the keys of all."""
    if isinstance(value, dict):
        return {k: bare(v) for k, v in value.items() if v is not None}
    return [bare(v) for v in value] if isinstance(value, list) else value


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


class _reading:
    """Whatever the library raises within is a DataError that says where."""

    def __init__(self, where: Path | str) -> None:
        self._where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DataError):
            raise DataError(f"{self._where}: cannot be read: {type(error).__name__}: {error}") from None
