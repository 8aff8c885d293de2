"""Curation composed: sources, suites and detectors that exist here, put to what the commands of `demeanor data` do.

In: names and settings from the command line. Out: a .jsonl file and counts of what was kept and dropped, by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demeanor import suites
from demeanor.build import library
from demeanor.data import curation, decontaminate, dedup, filters
from demeanor.data.words import row_text
from demeanor.errors import DataError, unknown
from demeanor.layers._detectors import DETECTORS
from demeanor.layers._folding import Folded
from demeanor.spec import Source
from demeanor.world import catalog


@dataclass(frozen=True, slots=True)
class Curated:
    """What a command did: rows kept, rows dropped by reason, and lines that show examples."""

    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    shown: Sequence[str] = ()
    notes: Sequence[str] = ()


def deduplicate(source: Source, out: Path, *, threshold: float | None, show: int, force: bool) -> Curated:
    """Keep the first of rows that say the same; `threshold` null compares whole texts only."""
    curation.check_out(out, force=force)
    if threshold is not None and not 0 < threshold <= 1:
        raise DataError(f"--threshold: got {threshold:g}, wanted a similarity above 0 and at most 1")
    found = dedup.duplicates((row_text(row) for _, row in _columns(source)), threshold)
    repeats = {duplicate.row: duplicate for duplicate in found}
    kept = curation.write(
        out, (row for i, (_, row) in enumerate(_columns(source, again=True)) if i not in repeats)
    )
    groups = dict(list(dedup.clusters(found).items())[:show])
    wanted = {*groups, *(d.row for group in groups.values() for d in group[:show])}
    texts = {
        i: f"{where}: {_short(row_text(row))}"
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
    source: Source, out: Path, *, suites: Sequence[str], words: int, show: int, force: bool
) -> Curated:
    """Drop rows that share `words` words in a row with an item of a suite."""
    curation.check_out(out, force=force)
    if words < decontaminate.MIN_WORDS:
        raise DataError(
            f"--words: got {words}, wanted at least {decontaminate.MIN_WORDS}; fewer words are shared by chance"
        )
    loaded = {name: decontaminate.Suite(_items(name), words) for name in suites}
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

    kept = curation.write(out, clean())
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
    curation.check_out(out, force=force)
    wanted = filters.Wanted(min_chars, max_chars, language, {} if personal else _detectors())
    dropped: Counter[str] = Counter()

    def fitting() -> Iterator[Mapping[str, Any]]:
        for _, row in _columns(source):
            why = filters.reason(row_text(row), wanted)
            if why is None:
                yield row
            else:
                dropped[why] += 1

    return Curated(curation.write(out, fitting()), dropped)


def _columns(source: Source, *, again: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with their places; what is skipped is said the first time, not when they are read `again`."""
    return curation.columns(
        source, root=Path(), generated=catalog.GENERATED, say=(lambda said: None) if again else print
    )


def _detectors() -> dict[str, Callable[[str], bool]]:
    """The policy layer's recognisers, on folded text."""

    def finds(name: str) -> Callable[[str], bool]:
        return lambda text: DETECTORS[name].find(Folded(text).text, 0) is not None

    return {name: finds(name) for name in DETECTORS}


def _items(name: str) -> Iterator[tuple[str, str]]:
    """(id, text) of a suite's items: `world:NAME`, `builtin:NAME`, or any file of rows."""
    if name.startswith((library.WORLD, suites.PREFIX)):
        if name not in library.offered():
            raise DataError(f"--suite: {unknown(name, library.offered(), noun='suite')} Or name a file.")
        for item in library.items(name, Path()):
            yield (
                item.id,
                "\n".join(
                    [
                        *(m.content for m in item.messages),
                        *(str(v) for v in item.target.values() if isinstance(v, str)),
                    ]
                ),
            )
        return
    for where, row in _columns(Source(source=name)):
        yield str(row.get("id", where)), row_text(row)


def _short(text: str, size: int = 100) -> str:
    line = " ".join(text.split())
    return line if len(line) <= size else f"{line[: size - 1]}…"
