"""The ledger: one JSON line of metrics per step, appended and flushed, so that a killed run loses at most a torn last line.

In: rows with a `step`. Out: the same rows. It refuses to know what the numbers mean.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from demeanor.errors import DataError


class Listener(Protocol):
    """Somebody else who is told every row (`train.trackers`)."""

    def log(self, step: int, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


Also = Callable[[], Listener]


class Ledger:
    """An append-only JSONL file, open for one run; opening drops every row after `step` and a torn last line.

    `also` is opened with it and told the rows that are kept, then each new one.
    """

    def __init__(self, path: Path, *, step: int = 0, also: Also | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(sum(size for row, size in _lines(path) if row["step"] <= step))
        self._also = None if also is None else also()
        if self._also is not None:
            for row in read(path):
                self._also.log(row["step"], row)

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row as one line; it is in the file, whole, when this returns. JSON has no NaN: it becomes null."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(plain, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._also is not None:
            self._also.log(row["step"], plain)

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        if self._also is not None:
            self._also.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Nowhere:
    """A ledger of a process that is not the first: it writes nothing."""

    def append(self, row: Mapping[str, Any]) -> None: ...

    def __enter__(self) -> Nowhere:
        return self

    def __exit__(self, *error: object) -> None: ...


def read(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a ledger in order; empty where there is none. Raises DataError on a broken line before the last."""
    return [row for row, _ in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows with their sizes in bytes; a last line without its newline was torn by a kill and is no row."""
    if not path.exists():
        return
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            return
        try:
            row = json.loads(line)
            row["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}:{number}: not a ledger row ({error}); move the file away to start a new one"
            ) from error
        yield row, len(line)
