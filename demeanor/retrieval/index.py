"""The search index over the passages of a folder: BM25 (SQLite FTS5), vectors of an encoder, or both fused.

In: a folder and how to search it. Out: a search function (query, k) -> passages, best first. An index is a file
named after its content: it is never changed once it is there. The next one starts from a copy of the last, and
only files that changed are read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from demeanor.core.errors import DataError, DemeanorError
from demeanor.core.files import replacing
from demeanor.core.types import Passage, Search
from demeanor.retrieval.documents import MAX_CHARACTERS, Chunk, chunks, files_of, read_file
from demeanor.retrieval.vectors import Encoder, Matrix, Progress, nearest, vectors_of
from demeanor.retrieval.words import ENGLISH, index_terms, query_terms, stemmer, without

MAX_TERMS = 256
MAX_READ = 10_000  # characters read of both ends of a query that is longer
KEPT = 2  # index files of one folder that stay: this one and the one before
CANDIDATES = 50  # passages that each ranking gives to the fusion
RRF_K = 60  # the constant of the paper
VERSION = 4  # of chunks and tables; a cached index of another version is not used
TABLES = """
CREATE TABLE files (name TEXT PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE chunks (row INTEGER PRIMARY KEY, file TEXT NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL,
    source TEXT NOT NULL, heading TEXT NOT NULL, body TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL,
    page INTEGER);
CREATE INDEX chunks_of_file ON chunks (file, number);
CREATE VIRTUAL TABLE words USING fts5 (heading, body, content = '', tokenize = 'ascii');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row);
"""
RANKED = "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"  # rank is bm25()
FIRST_READ = 64  # rows of a ranking; more are read if they are not enough
CHUNK = "SELECT file, number, id, source, heading, body, start, end, page FROM chunks WHERE row = ?"


@dataclass(frozen=True, slots=True)
class Ranking:
    """How passages are found: words that a query does not look for, a Snowball language, an encoder."""

    stop_words: frozenset[str] = frozenset()
    stemming: str | None = None
    encoder: Encoder | None = None
    by: str = "words"  # words, vectors or both
    passage_chars: int = MAX_CHARACTERS  # of the longest passage

    @property
    def cutting(self) -> Cutting:
        return Cutting(self.stemming, self.passage_chars)


class Cutting(NamedTuple):
    """What an index file depends on besides its documents."""

    stemming: str | None
    passage_chars: int


class Counts(NamedTuple):
    """What a build found, and what it had to read."""

    files: int
    passages: int
    read: int
    removed: int


class FoundPassage(NamedTuple):
    """A passage and its place: the parts of its file's name and its number there."""

    file: list[str]
    number: int
    passage: Passage


STOP_WORDS: Mapping[str, frozenset[str]] = {"english": ENGLISH}


def open_folder(
    folder: Path, cache: Path | None = None, ranking: Ranking = Ranking(), progress: Progress | None = None
) -> Search:
    """Return the search over a folder, cached as a file in `cache`.

    The search may be called from several threads. Raises DemeanorError if there is no such folder, DataError
    that lists every file that cannot be read.
    """
    connection, _ = _opened(folder, cache, ranking.cutting, progress)
    return Searcher(_InSqlite(connection, ranking, cache, progress), ranking)


def build(
    folder: Path, cache: Path | None, ranking: Ranking = Ranking(), progress: Progress | None = None
) -> Counts:
    """Bring the index of a folder up to date, vectors included, and say what had to be read."""
    connection, counts = _opened(folder, cache, ranking.cutting, progress)
    _InSqlite(connection, ranking, cache, progress)
    return counts


def remove(folder: Path, cache: Path) -> int:
    """Delete the index files of a folder; return how many there were. Vectors of its texts stay."""
    found = list(cache.glob(f"index-*-{home_of(folder)}-*.db"))
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)


class PassageStore(Protocol):
    """Where the passages of an index are: rankings of all of them, best first, and counts."""

    def by_words(self, terms: list[str]) -> Iterator[FoundPassage]:
        """Rank by BM25 the passages that have any of these terms (`term*`: its beginning)."""
        ...

    def by_vector(self, query: Matrix) -> Iterator[FoundPassage]:
        """Rank all passages by cosine."""
        ...

    def counts(self, terms: Sequence[str]) -> tuple[int, dict[str, int]]:
        """Return the number of passages, and of those that have each term."""
        ...


class Searcher:
    """Ranks the passages of a store by a question's words, by its vector, or by both."""

    def __init__(self, store: PassageStore, ranking: Ranking) -> None:
        self._store, self._ranking = store, ranking
        self._stem = stemmer(ranking.stemming) if ranking.stemming else None

    def __call__(self, query: str, k: int) -> list[Passage]:
        """Return the k best passages; those that say the same fill one place."""
        if k < 1:
            return []
        by, encoder = self._ranking.by, self._ranking.encoder
        if encoder is None or by == "words":
            best = list(self._distinct(self._by_words(query), k))
        elif by == "vectors":
            best = list(self._distinct(self._by_vectors(query), k))
        else:
            ranked = [
                list(self._distinct(found, max(CANDIDATES, k)))
                for found in (self._by_words(query), self._by_vectors(query))
            ]
            best = fused(ranked, k)
        return self._covered(query, best)

    def _covered(self, query: str, found: Sequence[Passage]) -> list[Passage]:
        """Return passages with the share of the question's words that stand in them or their headings."""
        weights = _rarity(*self._store.counts(self._terms(query)[:MAX_TERMS]))
        return [
            replace(p, coverage=_coverage(weights, set(stemmed(f"{p.heading} {p.text}", self._stem))))
            for p in found
        ]

    def _by_words(self, query: str) -> Iterator[FoundPassage]:
        terms = self._terms(query)
        if len(terms) > MAX_TERMS:
            terms = _rarest(self._store.counts(terms)[1])
        return self._store.by_words(terms)

    def _by_vectors(self, query: str) -> Iterator[FoundPassage]:
        assert self._ranking.encoder is not None
        if not query.strip():
            return iter(())
        shorter = query if len(query) <= 2 * MAX_READ else f"{query[:MAX_READ]} {query[-MAX_READ:]}"
        return self._store.by_vector(self._ranking.encoder.encode([shorter], query=True)[0])

    def _terms(self, query: str) -> list[str]:
        whole = len(query) <= 2 * MAX_READ
        terms = query_terms(query if whole else f"{query[:MAX_READ]} {query[-MAX_READ:]}")
        terms = without(terms, self._ranking.stop_words)
        return list(dict.fromkeys(map(self._stem, terms))) if self._stem else terms

    @staticmethod
    def _distinct(found: Iterable[FoundPassage], k: int) -> Iterator[Passage]:
        texts: set[str] = set()
        for each in found:
            text = " ".join(each.passage.text.split())
            if text not in texts:
                texts.add(text)
                yield each.passage
                if len(texts) == k:
                    return


Page: TypeAlias = Sequence[tuple[Any, float]]


def ranked(page: Callable[[int], Page], read: Callable[[Any, float], FoundPassage]) -> Iterator[FoundPassage]:
    """Yield a ranking whose first `limit` rows, with their scores, `page` gives; of equal scores the earlier place
    comes first."""
    limit, done = FIRST_READ, 0
    while True:
        found = page(limit)
        # A score that may go on behind the limit waits.
        whole = found if len(found) < limit else [x for x in found if x[1] != found[-1][1]]
        for _, equal in groupby(whole[done:], lambda row: row[1]):
            yield from sorted(read(row, score) for row, score in equal)
        if len(found) < limit:
            return
        limit, done = 8 * limit, len(whole)


class _InSqlite:
    """The passages of one SQLite connection; one statement at a time."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        ranking: Ranking,
        cache: Path | None,
        progress: Progress | None,
    ) -> None:
        self._connection, self._lock = connection, threading.Lock()
        self._vectors = self._rows = None
        if ranking.encoder is not None:
            query = "SELECT row, heading, body FROM chunks ORDER BY file, number"
            rows = self._connection.execute(query).fetchall()
            self._vectors = vectors_of(
                [searched_text(h, b) for _, h, b in rows], ranking.encoder, cache, progress
            )
            self._rows = [row for row, *_ in rows]

    def by_words(self, terms: list[str]) -> Iterator[FoundPassage]:
        def page(limit: int) -> Page:
            with self._lock:
                return self._connection.execute(RANKED, (expression(terms), limit)).fetchall()

        return ranked(page, self._read) if terms else iter(())

    def by_vector(self, query: Matrix) -> Iterator[FoundPassage]:
        assert self._vectors is not None
        assert self._rows is not None
        for place, score in nearest(self._vectors, query):
            yield self._read(self._rows[place], score)

    def counts(self, terms: Sequence[str]) -> tuple[int, dict[str, int]]:
        query = "SELECT coalesce(max(doc), 0) FROM vocabulary WHERE term >= ? AND term <= ?"
        with self._lock:
            return _count(self._connection), {
                term: self._connection.execute(query, term_range(term)).fetchone()[0] for term in terms
            }

    def _read(self, row: int, score: float) -> FoundPassage:
        with self._lock:
            file, number, id_, source, heading, body, start, end, page = self._connection.execute(
                CHUNK, (row,)
            ).fetchone()
        passage = Passage(id_, body, score, source, heading=heading, start=start, end=end, page=page)
        return FoundPassage(file.split("/"), number, passage)


def searched_text(heading: str, body: str) -> str:
    """Return the text of a passage that an encoder reads."""
    return "\n".join(filter(None, (heading, body)))


def term_range(term: str) -> tuple[str, str]:
    """Return the first and the last word that a term matches; `term*` matches every word that begins so."""
    bare = term.removesuffix("*")
    return bare, bare + "\U0010ffff" if term.endswith("*") else bare


def stemmed(text: str, stem: Callable[[str], str] | None) -> list[str]:
    """Return the terms of a text that is searched."""
    found = index_terms(text)
    return list(map(stem, found)) if stem else found


def fused(rankings: Sequence[Sequence[Passage]], k: int) -> list[Passage]:
    """Return the k best of several rankings: reciprocal rank fusion (Cormack et al. 2009), score sum of 1 / (60 + rank)."""
    scores: dict[str, float] = {}
    found: dict[str, Passage] = {}
    for ranking in rankings:
        for rank, passage in enumerate(ranking, 1):
            scores[passage.id] = scores.get(passage.id, 0.0) + 1 / (RRF_K + rank)
            found.setdefault(passage.id, passage)
    best = sorted(found.values(), key=lambda p: -scores[p.id])  # stable: the first ranking wins a tie
    return [replace(p, score=scores[p.id]) for p in best[:k]]


def _rarest(counts: Mapping[str, int]) -> list[str]:
    """Return the MAX_TERMS terms that stand in the fewest passages, but in one at least."""
    return [term for _, term in sorted((n, term) for term, n in counts.items() if n)[:MAX_TERMS]]


def _rarity(passages: int, counts: Mapping[str, int]) -> dict[str, float]:
    """Return ln(1 + (N - n + 0.5) / (n + 0.5)) of each term, which stands in n of N passages: largest where it is in none."""
    return {term: math.log(1 + (passages - n + 0.5) / (n + 0.5)) for term, n in counts.items()}


def _coverage(weights: Mapping[str, float], said: set[str]) -> float:
    """Return the share of the weights whose terms are among those said."""
    covered = sum(
        weight
        for term, weight in weights.items()
        if term in said or (term.endswith("*") and any(word.startswith(term[:-1]) for word in said))
    )
    return covered / (sum(weights.values()) or 1.0)


def expression(terms: list[str]) -> str:
    """Return the FTS5 expression for any of these terms; they are quoted, so none is syntax."""
    return " OR ".join(f'"{term.removesuffix("*")}"{" *" * term.endswith("*")}' for term in terms)


# ---- building ----


def _opened(
    folder: Path, cache: Path | None, cutting: Cutting, progress: Progress | None
) -> tuple[sqlite3.Connection, Counts]:
    files = files_of(folder)
    contents = {name: content_of(path) for name, path in files.items()}
    if cache is None:
        connection, counts = _in_memory(folder, tuple(contents.items()), cutting)
        return connection, counts
    total = hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()[:16]
    family = f"index-{VERSION}-{cutting.stemming or 'words'}-{cutting.passage_chars}-{home_of(folder)}-"
    path = cache / f"{family}{total}.db"
    read = removed = 0
    if not path.exists():
        before = sorted(cache.glob(f"{family}*.db"), key=lambda p: p.stat().st_mtime)
        with replacing(path, shared=True) as part:
            if before:
                shutil.copyfile(before[-1], part)
            with contextlib.closing(sqlite3.connect(part)) as connection:
                if not before:
                    _create(connection)
                read, removed = _update(connection, folder, files, contents, cutting, progress)
        for old in before[: max(0, len(before) + 1 - KEPT)]:
            old.unlink(missing_ok=True)  # whoever has it open keeps it
    found = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    return found, Counts(len(files), _count(found), read, removed)


@lru_cache(maxsize=16)
def _in_memory(
    folder: Path, contents: tuple[tuple[str, str], ...], cutting: Cutting
) -> tuple[sqlite3.Connection, Counts]:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    _create(connection)
    read, removed = _update(connection, folder, files_of(folder), dict(contents), cutting, None)
    return connection, Counts(len(contents), _count(connection), read, removed)


def home_of(folder: Path) -> str:
    """Return what an index knows a folder by."""
    return hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:12]


def content_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("SELECT count(*) FROM chunks").fetchone()[0]
    return found


def _create(connection: sqlite3.Connection) -> None:
    try:
        connection.executescript(TABLES)
    except sqlite3.OperationalError as error:
        raise DemeanorError(f"this Python's SQLite cannot search text ({error}); it needs FTS5") from None


def _update(
    connection: sqlite3.Connection,
    folder: Path,
    files: Mapping[str, Path],
    contents: Mapping[str, str],
    cutting: Cutting,
    progress: Progress | None,
) -> tuple[int, int]:
    """Read what changed and forget what is gone; return how many files were read and how many forgotten."""
    stem = stemmer(cutting.stemming) if cutting.stemming else None

    def terms(text: str) -> str:
        return " ".join(stemmed(text, stem))

    known = dict(connection.execute("SELECT name, content FROM files"))
    gone = [name for name in known if contents.get(name) != known[name]]
    new = [name for name in contents if known.get(name) != contents[name]]
    for name in gone:
        rows = connection.execute("SELECT row, heading, body FROM chunks WHERE file = ?", (name,)).fetchall()
        delete = "INSERT INTO words (words, rowid, heading, body) VALUES ('delete', ?, ?, ?)"
        connection.executemany(delete, [(row, terms(heading), terms(body)) for row, heading, body in rows])
        connection.execute("DELETE FROM chunks WHERE file = ?", (name,))
        connection.execute("DELETE FROM files WHERE name = ?", (name,))
    refused: list[str] = []
    for done, name in enumerate(new):
        try:
            found = chunks(name, read_file(files[name]), cutting.passage_chars)
        except (OSError, ValueError) as error:
            refused.append(f"{str(files[name])!r}: {error}")
            continue
        _add(connection, name, contents[name], found, terms)
        if progress is not None:
            progress("files read", done + 1, len(new))
    if refused:
        raise DataError(
            f"{folder}: {len(refused)} of its files cannot be indexed:\n  " + "\n  ".join(refused)
        )
    twice = "SELECT id, min(file), max(file) FROM chunks GROUP BY id HAVING count(*) > 1 LIMIT 1"
    if (same := connection.execute(twice).fetchone()) is not None:
        raise DataError(
            f"{folder}: the passage id {same[0]!r} stands in {same[1]} and in {same[2]}; ids are unique"
        )
    connection.commit()
    return len(new), len([name for name in gone if name not in contents])


def _add(
    connection: sqlite3.Connection,
    name: str,
    content: str,
    found: Sequence[Chunk],
    terms: Callable[[str], str],
) -> None:
    first = connection.execute("SELECT coalesce(max(row), 0) + 1 FROM chunks").fetchone()[0]
    connection.execute("INSERT INTO files (name, content) VALUES (?, ?)", (name, content))
    connection.executemany(
        "INSERT INTO chunks (row, file, number, id, source, heading, body, start, end, page) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (first + i, name, i, c.id, c.source, c.heading, c.body, c.start, c.end, c.page)
            for i, c in enumerate(found)
        ],
    )
    connection.executemany(
        "INSERT INTO words (rowid, heading, body) VALUES (?, ?, ?)",
        [(first + i, terms(c.heading), terms(c.body)) for i, c in enumerate(found)],
    )
