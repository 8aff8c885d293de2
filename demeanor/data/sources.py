"""Data sources: files and folders, Hugging Face hub ids (`hf:NAME`), and generated rows (`world:NAME`).

In: a declared Source. Out: Examples, Preferences or Unpaired with their file and line. No row is skipped
silently: rows that cannot be used are listed in one DataError, or reported if the source says `skip_bad`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from demeanor.core.errors import DataError, check_unicode, unknown
from demeanor.core.types import Example, Messages, Preference, TrainingRow, Unpaired
from demeanor.data import readers
from demeanor.data.published_rows import unread_keys
from demeanor.data.readers import Bad, RawRow
from demeanor.data.rows import COLUMNS, REASONING, TRAINED_BY, Want, kind_of, likely, parse
from demeanor.stack.schema import Source
from demeanor.world.catalog import GENERATED

LISTED = 8  # bad rows that are named one by one
FIRST_ROWS = 20  # rows that are looked at to tell what a source holds

Generated = Mapping[str, Callable[[], Iterable[TrainingRow]]]
Say = Callable[[str], object]
T = TypeVar("T")
KINDS: Mapping[Want, tuple[type[TrainingRow], ...]] = {
    "examples": (Example,),
    "text": (Example,),
    "preferences": (Preference,),
    "unpaired": (Unpaired, Preference),
    "prompts": (Example, Preference),
}


class Problems:
    """The unusable rows of one source, reported in one error, or in one message if they may be skipped."""

    def __init__(self, name: str) -> None:
        self._name, self.good = name, 0
        self.bad: list[str] = []
        self.why: set[str] = set()
        self.unread: Counter[str] = Counter()  # keys of messages that nothing reads, by rows

    def add(self, where: str, error: Exception) -> None:
        """Note a row that cannot be used."""
        what = str(error)
        self.why.add(what)
        self.bad.append(what if where in what else f"{where or 'row'}: {what}")

    def error(self) -> DataError | None:
        """Return the error that names the first of them, None if there is none."""
        if len(self.bad) < 2:
            return DataError(self.bad[0]) if self.bad else None
        header = f"{self._name}: {len(self.bad)} of {len(self.bad) + self.good} rows cannot be used"
        if len(self.why) == 1:
            return DataError(f"{header}, all for the same reason. The first: {self.bad[0]}")
        return DataError("\n  ".join([f"{header}:", *_first(self.bad, LISTED)]))

    def close(self, skip: bool, say: Say) -> None:
        """Raise the error, or if rows may be skipped, say how many were and name the first; tell keys that nothing reads."""
        if self.unread:
            named = ", ".join(f"'{key}' ({n:,} rows)" for key, n in self.unread.most_common(5))
            say(
                f"warning: {self._name}: messages have keys that nothing reads: {named}; check their spelling"
            )
        if (error := self.error()) is None:
            return
        if not skip:
            raise error
        total = len(self.bad) + self.good
        header = f"{self._name}: skipped {len(self.bad)} of {total} rows:"
        say("\n  ".join([header, *_first(self.bad, LISTED)]))
        if not self.good:
            raise DataError(f"{self._name}: none of {total} rows can be used. The first: {self.bad[0]}")


class Doubts:
    """Rows that can be used but are probably a mistake: counts, and what to say of them."""

    def __init__(self, specials: Iterable[str] = (), template: str | None = None) -> None:
        """`specials` are the texts of special tokens, `template` the jinja that writes the rows."""
        listed = sorted((re.escape(text) for text in specials if len(text) > 2), key=len, reverse=True)
        self._special = re.compile("|".join(listed)) if listed else None
        self._spelt: Counter[str] = Counter()  # special tokens by the number of rows that spell them
        self._labels: Counter[bool] = Counter()
        self._thinks = template is None or any(name in template for name in REASONING)
        self._rows = self._pairs = self._same = self._spelling = self._thoughts = 0

    def add(self, row: TrainingRow) -> None:
        """Count a row."""
        self._rows += 1
        if isinstance(row, Preference):
            best = {c for c, rank in zip(row.completions, row.ranks) if rank == min(row.ranks)}
            worse = {c for c, rank in zip(row.completions, row.ranks) if rank > min(row.ranks)}
            self._pairs += 1
            self._same += not best.isdisjoint(worse)
            self._labels.update((True, False))
        elif isinstance(row, Unpaired):
            self._labels[row.desirable] += 1
        messages = _messages(row)
        self._thoughts += any(m.reasoning for m in messages)
        if self._special is not None:
            said = [row.text or ""] if isinstance(row, Example) else []
            said += [m.content for m in messages]
            found = set(self._special.findall("\n".join(said)))
            self._spelling += bool(found)
            self._spelt.update(found)

    def said(self) -> list[str]:
        """Return one sentence for each kind of doubt."""
        found = []
        if self._same:
            found.append(
                f"{self._same:,} of {self._pairs:,} comparisons have the same text chosen and rejected: "
                "they teach nothing; leave them out"
            )
        if self._labels and len(self._labels) == 1 and not self._pairs:
            label = "true" if True in self._labels else "false"
            found.append(
                f"all {self._labels.total():,} labels are {label}: there is nothing to tell apart; "
                "add rows with the other label"
            )
        if self._spelling:
            names = ", ".join(text for text, _ in self._spelt.most_common(4))
            found.append(
                f"{self._spelling:,} of {self._rows:,} rows spell special tokens in their text ({names}): "
                "there they are plain characters, as text always is; write such rows as messages"
            )
        if self._thoughts and not self._thinks:
            found.append(
                f"{self._thoughts:,} of {self._rows:,} rows have reasoning_content, which the template does not "
                "write; use a template that reads it, or write the reasoning into the content"
            )
        return [f"warning: {what}" for what in found]


def _messages(row: TrainingRow) -> Messages:
    if isinstance(row, Example):
        return row.messages
    if isinstance(row, Unpaired):
        return (*row.prompt, *row.completion)
    return (*row.prompt, *(m for completion in row.completions for m in completion))


def rows(
    source: Source, *, root: Path, generated: Generated = GENERATED, want: Want = "examples", say: Say = print
) -> list[TrainingRow]:
    """Read a source: its first `limit` rows, repeated `weight` times (the fractional part is a fixed draw).

    `generated` holds the rows of `world:NAME` under NAME. Raises DataError with the file, line and what was
    wanted.
    """
    found = list(read(source, root=root, generated=generated, want=want, say=say))
    return weighted(found, source.weight, source.source)


def kind(source: Source, root: Path, *, generated: Generated = GENERATED) -> Want:
    """The kind of rows that a source holds, by its first row that is of any; `examples` if none is."""
    if source.source.startswith("world:"):
        first = next(iter(generated.get(source.source[6:], tuple)()), None)
        return next((want for want in TRAINED_BY if isinstance(first, KINDS[want])), "examples")
    some = [row for _, row in islice(columns(source, root, Problems("")), FIRST_ROWS)]
    known = (found for row in some if (found := kind_of(row)) is not None)
    return next(known, likely(some[0]) if some else "examples")


def read(
    source: Source,
    *,
    root: Path,
    generated: Generated = GENERATED,
    want: Want = "examples",
    say: Say = print,
    problems: Problems | None = None,
) -> Iterator[TrainingRow]:
    """Yield the first `limit` rows of a source; raises DataError at the end if some cannot be used.

    With `problems` of the caller, they are noted there and nothing is raised or said.
    """
    name = source.source
    if name.startswith("world:"):
        yield from _generated(name, generated, want, source.limit)
        return
    noted = problems or Problems(name if name.startswith("hf:") else str(root / name))
    found = False
    for where, row in columns(source, root, noted):
        try:
            parsed = parse(row, want, where)
        except (ValueError, DataError) as error:
            noted.add(where, error)
        else:
            noted.good += 1
            noted.unread.update(set(unread_keys(row)))
            found = True
            yield parsed
    if problems is None:
        noted.close(source.skip_bad, say)
    if not found and not noted.bad:
        raise DataError(f"{name}: has no rows; wanted {COLUMNS[want]}")


def columns(source: Source, root: Path, problems: Problems) -> Iterator[RawRow]:
    """Yield the place and columns of the first `limit` rows; unreadable ones are noted in `problems`."""
    raw = islice(raw_rows(source, root), source.limit)
    while True:
        try:
            where, row = next(raw)
        except StopIteration:
            return
        except DataError as error:  # the rest of the file is unreadable: told with the rows before it
            if problems.bad:
                problems.add("", error)
                raise problems.error() from None  # type: ignore[misc]
            raise
        try:
            if isinstance(row, Bad):
                raise ValueError(row.why)
            check_unicode(row)
            row = renamed(row, source.columns)
        except (ValueError, DataError) as error:
            problems.add(where, error)
        else:
            yield where, row


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
