"""Foreign data files as rows: JSON lines (also gzipped, also named .json), one JSON list, or CSV.

Input: a path. Output: (line, row) pairs, or (line, mistake). It does not know what the rows mean.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
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
        text = self._text()
        if self.path.suffix == ".csv":
            table = csv.DictReader(io.StringIO(text, newline=""))
            return [(table.line_num, {k: v for k, v in row.items() if k is not None}) for row in table]
        if text.lstrip()[:1] == "[":
            try:
                whole = json.loads(text)
            except ValueError as error:
                raise DataError(f"{self.path}: no JSON: {error}") from None
            return [
                (n, row if isinstance(row, dict) else f"got {type(row).__name__}, wanted an object")
                for n, row in enumerate(whole, 1)
            ]
        return [(n, _object(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]

    def _text(self) -> str:
        if self.path.suffix != ".gz":
            return self.path.read_text(encoding="utf-8-sig")
        try:
            with gzip.open(self.path) as file:
                data = file.read(MOST_BYTES + 1)
        except (OSError, EOFError) as error:
            raise DataError(f"{self.path}: no gzip file: {error}") from None
        if len(data) > MOST_BYTES:
            raise DataError(f"{self.path}: unpacks to more than {MOST_BYTES} bytes; unpack and split it")
        return data.decode("utf-8-sig")

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


def _object(line: str) -> Mapping[str, Any] | str:
    try:
        found = json.loads(line)
    except ValueError as error:
        return f"no JSON: {error}"
    return found if isinstance(found, dict) else f"got {type(found).__name__}, wanted an object"
