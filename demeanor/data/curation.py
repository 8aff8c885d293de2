"""Curation of training data: removes duplicates, overlaps with suites, and rows of unwanted length or
content.

In: a source and what is wanted. Out: a .jsonl file and counts of removed rows by reason. The texts of suites
are passed in.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from demeanor.core.errors import DataError, unknown
from demeanor.core.files import replacing
from demeanor.core.language import KNOWN, certain_language
from demeanor.core.long_text import Folded
from demeanor.core.personal_data import DETECTORS
from demeanor.data import similarity, sources
from demeanor.data.readers import foreign
from demeanor.data.similarity import as_columns, row_text, whole_text
from demeanor.data.sources import Generated, Problems, Say
from demeanor.stack.schema import Source
from demeanor.world.catalog import GENERATED


@dataclass(frozen=True, slots=True)
class Wanted:
    """Requirements of a row: length in characters, language, and no hits of `detectors` (None: no
    requirement)."""

    min_chars: int | None = None
    max_chars: int | None = None
    language: str | None = None
    detectors: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in KNOWN:
            raise DataError(f"--language: {unknown(self.language, KNOWN, noun='language')}")
        if None not in (self.min_chars, self.max_chars) and (self.min_chars or 0) > (self.max_chars or 0):
            raise DataError(
                f"--min-chars {self.min_chars} is more than --max-chars {self.max_chars}; no row would stay"
            )


def reason(text: str, wanted: Wanted, whole: str | None = None) -> str | None:
    """Return why a row is left out, or None; a text whose language is uncertain (short, a number) stays.

    Personal data is looked for in `whole`: everything that the row says.
    """
    if wanted.min_chars is not None and len(text) < wanted.min_chars:
        return f"shorter than {wanted.min_chars} characters"
    if wanted.max_chars is not None and len(text) > wanted.max_chars:
        return f"longer than {wanted.max_chars} characters"
    if wanted.language is not None and (found := certain_language(text)) not in (wanted.language, None):
        return f"language {found}"
    said = text if whole is None else whole
    return next((f"personal data: {name}" for name, finds in wanted.detectors.items() if finds(said)), None)


def columns(
    source: Source, *, root: Path, generated: Generated = GENERATED, say: Say = print
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and columns of the first `limit` rows; raises DataError at the end if some are
    unreadable."""
    name = source.source
    if name.startswith("world:"):
        if name[6:] not in generated:
            raise DataError(unknown(name, [f"world:{n}" for n in generated], noun="source"))
        rows = islice(generated[name[6:]](), source.limit)
        yield from ((f"{name}: row {number}", as_columns(row)) for number, row in enumerate(rows, start=1))
        return
    problems = Problems(name)
    for where, row in sources.columns(source, root, problems):
        named = {"text": row} if isinstance(row, str) else row
        try:
            if not isinstance(named, Mapping):
                raise ValueError(f"got a {type(row).__name__}, wanted an object of columns")
            for column, value in named.items():
                if (kind := foreign(value)) is not None:
                    raise ValueError(f"{column}: holds a {kind}, which .jsonl cannot; leave that column out")
        except ValueError as error:
            problems.add(where, error)
        else:
            problems.good += 1
            yield where, dict(named)
    problems.close(source.skip_bad, say)


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
    count = 0
    with replacing(path, shared=True) as part, part.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


@dataclass(frozen=True, slots=True)
class Curated:
    """Result of a command: rows kept, rows dropped by reason, and lines that show examples."""

    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    shown: Sequence[str] = ()
    notes: Sequence[str] = ()


def deduplicate(source: Source, out: Path, *, threshold: float | None, show: int, force: bool) -> Curated:
    """Keep the first of each group of equal rows; `threshold` None drops only rows that say the same."""
    check_out(out, force=force)
    if threshold is not None and not 0 < threshold <= 1:
        raise DataError(f"--threshold: got {threshold:g}, wanted a similarity above 0 and at most 1")
    found = similarity.duplicates((row for _, row in _columns(source)), threshold)
    repeats = {duplicate.row: duplicate for duplicate in found}
    kept = write(out, (row for i, (_, row) in enumerate(_columns(source, again=True)) if i not in repeats))
    groups = dict(list(similarity.clusters(found).items())[:show])
    wanted = {*groups, *(d.row for group in groups.values() for d in group[:show])}
    texts = {
        i: f"{where}: {_excerpt(row_text(row))}"
        for i, (where, row) in enumerate(_columns(source, again=True))
        if i in wanted
    }
    shown = []
    for of, group in groups.items():
        shown += [
            f"{len(group) + 1} alike, kept {texts[of]}",
            *(f"    {d.similarity:.2f} dropped {texts[d.row]}" for d in group[:show]),
        ]
    reasons = Counter(
        "exact repeat" if d.similarity == 1 else f"near repeat (similarity >= {threshold:g})" for d in found
    )
    return Curated(kept, reasons, shown)


def remove_overlaps(
    source: Source,
    out: Path,
    *,
    suites: Mapping[str, Iterable[tuple[str, str]]],
    words: int,
    show: int,
    force: bool,
) -> Curated:
    """Drop rows that share `words` consecutive words with an item; `suites` are (id, text) of items by
    name."""
    check_out(out, force=force)
    if words < similarity.MIN_WORDS:
        raise DataError(
            f"--words: got {words}, wanted at least {similarity.MIN_WORDS}; fewer words are shared by chance"
        )
    loaded = {name: similarity.SuiteNgrams(items, words) for name, items in suites.items()}
    dropped: Counter[str] = Counter()
    shown: list[str] = []

    def clean() -> Iterator[Mapping[str, Any]]:
        for where, row in _columns(source):
            text = row_text(row)
            hits = [(name, overlap) for name, suite in loaded.items() for overlap in suite.overlaps(text)]
            if not hits:
                yield row
                continue
            dropped[f"overlaps with {hits[0][0]}"] += 1
            shown.extend(f"{where}: {name} {overlap.item}: {overlap.ngram}" for name, overlap in hits[:3])

    kept = write(out, clean())
    notes = [
        f"{name}: {suite.size} items, {suite.too_short} of them too short to look for"
        for name, suite in loaded.items()
    ]
    more = [f"and {len(shown) - show} more"] if len(shown) > show else []
    return Curated(kept, dropped, [*shown[:show], *more], notes)


def keep_wanted(
    source: Source,
    out: Path,
    *,
    min_chars: int | None,
    max_chars: int | None,
    language: str | None,
    personal: bool,
    force: bool,
) -> Curated:
    """Keep rows of the wanted length and language, without personal data unless `personal`."""
    check_out(out, force=force)
    wanted = Wanted(min_chars, max_chars, language, {} if personal else _detectors())
    dropped: Counter[str] = Counter()

    def kept() -> Iterator[Mapping[str, Any]]:
        for _, row in _columns(source):
            why = reason(row_text(row), wanted, whole_text(row) if wanted.detectors else "")
            if why is None:
                yield row
            else:
                dropped[why] += 1

    return Curated(write(out, kept()), dropped)


def _columns(source: Source, *, again: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with their places; skipped rows are reported the first time, not when read `again`."""
    return columns(source, root=Path(), say=(lambda message: None) if again else print)


def _detectors() -> dict[str, Callable[[str], bool]]:
    """Return the detectors of the policy layer, applied to folded text."""

    def finds(name: str) -> Callable[[str], bool]:
        return lambda text: any(True for _ in DETECTORS[name].find(Folded(text).text, 0))

    return {name: finds(name) for name in DETECTORS}


def texts(name: str) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of every row of a source, as `remove_overlaps` compares them."""
    for where, row in _columns(Source(source=name)):
        yield str(row.get("id", where)), row_text(row)


def _excerpt(text: str, size: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size - 1]}…"
