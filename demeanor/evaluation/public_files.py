"""Foreign data files as rows: JSON lines (also gzipped, also named .json), one JSON list, or CSV.

Input: a path. Output: (line, row) pairs, or (line, mistake). It does not know what the rows mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from demeanor.core.errors import DataError

SUFFIXES = (".csv", ".json", ".jsonl", ".jsonl.gz")
MOST_BYTES = 1 << 30
"""A gzipped file that unpacks to more is refused."""
R = TypeVar("R", bound="PublicRow")


class PublicRow(BaseModel):
    """The fields of a row that a reader uses; other fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


@dataclass(frozen=True)
class File:
    """A data file and its rows, read once; a row that is no mapping is the text of a mistake."""

    path: Path
    notes: dict[str, Any] = field(default_factory=dict, compare=False)
    """What a set keeps of this file while it is read."""

    @property
    def stem(self) -> str:
        return self.path.name.split(".")[0]

    @cached_property
    def rows(self) -> list[tuple[int, Mapping[str, Any] | str]]:
        if self.path.suffix == ".csv":
            return list(self._table())
        if self.text.lstrip()[:1] == "[":
            try:
                whole = strict_json(self.text)
            except ValueError as error:
                raise DataError(f"{self.path}: no JSON: {error}") from None
            return [
                (n, row if isinstance(row, dict) else f"got {type(row).__name__}, wanted an object")
                for n, row in enumerate(whole, 1)
            ]
        return [(n, _object(line)) for n, line in self.lines()]

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines with their numbers, blank ones left out: a line feed ends a line, U+2028 and U+0085 do not."""
        return ((n, line) for n, line in enumerate(self.text.split("\n"), 1) if line.strip())

    def _table(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        csv.field_size_limit(MOST_BYTES)
        table = csv.DictReader(io.StringIO(self.text, newline=""))
        try:
            for row in table:
                yield table.line_num, {k: v for k, v in row.items() if k is not None}
        except csv.Error as error:
            raise DataError(f"{self.path}:{table.line_num}: no CSV: {error}") from None

    @cached_property
    def text(self) -> str:
        """All of it; raises DataError with the line where it is not UTF-8."""
        data = self.path.read_bytes() if self.path.suffix != ".gz" else self._unpacked()
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            kind = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
            raise DataError(
                f"{self.path}:{line}: {kind} text (byte {error.start} is {data[error.start]:#04x}); "
                "wanted UTF-8: save the file in that encoding"
            ) from None

    def _unpacked(self) -> bytes:
        try:
            with gzip.open(self.path) as file:
                data = file.read(MOST_BYTES + 1)
        except (OSError, EOFError) as error:
            raise DataError(f"{self.path}: no gzip file: {error}") from None
        if len(data) > MOST_BYTES:
            raise DataError(f"{self.path}: unpacks to more than {MOST_BYTES} bytes; unpack and split it")
        return data

    @property
    def first(self) -> Mapping[str, Any]:
        """The first row; empty if there is none or it is no mapping."""
        row = self.rows[0][1] if self.rows else {}
        return {} if isinstance(row, str) else row

    def parsed(self, model: type[R]) -> Iterator[tuple[int, R | str]]:
        """Each row as `model`, or what is wrong with it."""
        for line, row in self.rows:
            if isinstance(row, str):
                yield line, row
                continue
            try:
                yield line, model.model_validate(row)
            except ValidationError as error:
                one = error.errors(include_url=False)[0]
                yield line, f"{'.'.join(map(str, one['loc']))}: {one['msg']}"


def strict_json(text: str) -> Any:
    """A JSON value; raises ValueError for what JSON has not (NaN, Infinity), a key that stands twice, and text that cannot be written."""
    try:
        found = json.loads(text, parse_constant=_constant, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if re.search(r"\\u(?:d[89a-f]|0000)", text, re.IGNORECASE):
        _writable(found)
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value; wanted a number or null")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"the key '{twice}' stands twice")
    return found


def _writable(value: Any) -> None:
    """Raise ValueError for half a surrogate pair and for U+0000."""
    whole = json.dumps(value, ensure_ascii=False)
    half = re.search("[\ud800-\udfff]", whole)
    if half or "\\u0000" in whole.replace("\\\\", ""):
        named = f"half a surrogate pair (U+{ord(half[0]):04X})" if half else "the character U+0000"
        raise ValueError(f"{named} in a text; wanted characters that UTF-8 text can hold")


def _object(line: str) -> Mapping[str, Any] | str:
    try:
        found = strict_json(line)
    except ValueError as error:
        return f"no JSON: {error}"
    return found if isinstance(found, dict) else f"got {type(found).__name__}, wanted an object"
