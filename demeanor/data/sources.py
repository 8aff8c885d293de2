"""Data sources: files and folders, Hugging Face hub ids (`hf:NAME`), and generated rows (`world:NAME`).

In: a declared Source. Out: Examples, Preferences or Unpaired with their file and line. No row is skipped
silently: rows that cannot be used are listed in one DataError, or reported if the source says `skip_bad`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from demeanor.core.errors import DataError, unknown
from demeanor.core.types import Example, Preference, TrainingRow, Unpaired
from demeanor.data import readers
from demeanor.data.readers import Bad, RawRow
from demeanor.data.rows import COLUMNS, Want, parse
from demeanor.stack.schema import Source
from demeanor.world.catalog import GENERATED

LISTED = 8  # bad rows that an error names one by one
SKIPPED = 3  # bad rows that are named where they are skipped

Generated = Mapping[str, Callable[[], Iterable[TrainingRow]]]
Say = Callable[[str], object]
T = TypeVar("T")
KINDS: Mapping[Want, tuple[type[TrainingRow], ...]] = {
    "examples": (Example,),
    "text": (Example,),
    "preferences": (Preference,),
    "unpaired": (Unpaired, Preference),
}


class Problems:
    """The unusable rows of one source, reported in one error, or in one message if they may be skipped."""

    def __init__(self, name: str) -> None:
        self._name, self.good = name, 0
        self.bad: list[str] = []

    def close(self, skip: bool, say: Say) -> None:
        """Raise DataError with the first of them, or report how many were skipped and the first three."""
        if not self.bad:
            return
        total = len(self.bad) + self.good
        if skip:
            header = f"{self._name}: skipped {len(self.bad)} of {total} rows:"
            say("\n  ".join([header, *_first(self.bad, SKIPPED)]))
        elif len(self.bad) == 1:
            raise DataError(self.bad[0])
        else:
            header = f"{self._name}: {len(self.bad)} of {total} rows cannot be used:"
            raise DataError("\n  ".join([header, *_first(self.bad, LISTED)]))


def rows(
    source: Source, *, root: Path, generated: Generated = GENERATED, want: Want = "examples", say: Say = print
) -> list[TrainingRow]:
    """Read a source: its first `limit` rows, repeated `weight` times (the fractional part is a fixed draw).

    `generated` holds the rows of `world:NAME` under NAME. Raises DataError with the file, line and what was
    wanted.
    """
    found = list(read(source, root=root, generated=generated, want=want, say=say))
    return weighted(found, source.weight, source.source)


def read(
    source: Source, *, root: Path, generated: Generated = GENERATED, want: Want = "examples", say: Say = print
) -> Iterator[TrainingRow]:
    """Yield the first `limit` rows of a source; raises DataError at the end if some cannot be used."""
    name = source.source
    if name.startswith("world:"):
        yield from _generated(name, generated, want, source.limit)
        return
    problems = Problems(name if name.startswith("hf:") else str(root / name))
    for where, raw in islice(raw_rows(source, root), source.limit):
        try:
            if isinstance(raw, Bad):
                raise ValueError(raw.why)
            row = parse(renamed(raw, source.columns), want, where)
        except ValueError as error:
            problems.bad.append(f"{where}: {error}")
        else:
            problems.good += 1
            yield row
    problems.close(source.skip_bad, say)
    if not problems.good:
        raise DataError(f"{name}: has no rows; wanted {COLUMNS[want]}")


def raw_rows(source: Source, root: Path) -> Iterator[RawRow]:
    """Yield the unparsed columns of each row of a file, folder or hub id, with its place."""
    hub = source.source.startswith("hf:")
    if source.config is not None and not hub:
        raise DataError(
            f"{source.source}: got config '{source.config}', but config is for hub ids (hf:owner/name); "
            "leave it out"
        )
    if hub:
        return readers.hub(source.source, source.config, source.split, lazily=source.stream)
    path = root / source.source
    if source.split is not None and not readers.is_saved(path):
        raise DataError(
            f"{path}: got split '{source.split}', but split is for hub ids (hf:owner/name) "
            "and saved datasets; leave it out"
        )
    return readers.raw_rows(path, source.split)


def renamed(row: Any, columns: Mapping[str, str] | None) -> Any:
    """Rename columns by `columns` (our name: the file's name); raises ValueError if one does not exist."""
    if not columns or not isinstance(row, Mapping):
        return row
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise ValueError(f"columns: {unknown(missing[0], map(str, row), noun='column')}")
    kept = {k: v for k, v in row.items() if k not in columns.values() and k not in columns}
    return {**kept, **{ours: row[theirs] for ours, theirs in columns.items()}}


def weighted(found: Sequence[T], weight: float, name: str) -> list[T]:
    """Repeat or thin rows to round(weight x rows), at least one; the draw depends on `name` only."""
    count = max(1, round(weight * len(found)))
    whole, part = divmod(count, len(found))
    kept = sorted(random.Random(name).sample(range(len(found)), part))
    return list(found) * whole + [found[i] for i in kept]


def repeated(read: Callable[[], Iterable[T]], weight: float, name: str) -> Iterator[T]:
    """Yield the rows of `weighted` in its order without storing them: each repeat reads them again."""
    if weight == 1:
        yield from read()
        return
    order = iter(weighted(range(sum(1 for _ in read())), weight, name))
    wanted = next(order, None)
    while wanted is not None:  # each pass goes on while places increase
        last = -1
        for place, row in enumerate(read()):
            if wanted == place:
                yield row
                last, wanted = place, next(order, None)
                if wanted is None or wanted <= last:
                    break


def _generated(name: str, generated: Generated, want: Want, limit: int | None) -> Iterator[TrainingRow]:
    if name[6:] not in generated:
        raise DataError(unknown(name, [f"world:{n}" for n in generated], noun="source"))
    number = 0
    for number, row in enumerate(islice(generated[name[6:]](), limit), start=1):
        if not isinstance(row, KINDS[want]) or (
            want == "text" and isinstance(row, Example) and row.text is None
        ):
            raise DataError(f"{name}: row {number}: got {_kind(row)}, wanted {want}")
        yield row
    if not number:
        raise DataError(f"{name}: has no rows; wanted {COLUMNS[want]}")


def _kind(row: TrainingRow) -> str:
    if not isinstance(row, Example):
        return "a preference" if isinstance(row, Preference) else "a completion with a label"
    return "a text" if row.text is not None else "a conversation"


def _first(found: Sequence[str], count: int) -> list[str]:
    return [*found[:count], *([f"and {len(found) - count} more"] if len(found) > count else [])]
