"""The search index: BM25 search (SQLite FTS5) over the passages of a folder.

In: a folder. Out: a search function (query, k) -> passages, best first. Words of passages and queries are
folded in one way, so that a word that stands in a document is found however it is written: case, accents,
ligatures, \u00df and umlauts do not matter. Scripts without spaces are searched by pairs of characters.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import groupby, islice, pairwise
from pathlib import Path

from demeanor.core.errors import DemeanorError
from demeanor.core.files import replacing
from demeanor.core.long_text import fold
from demeanor.core.types import Passage
from demeanor.retrieval.documents import Chunk, chunks, read_folder

MAX_TERMS, MAX_TERM = 256, 256
MAX_READ = 10_000  # characters read of both ends of a query that is longer
VERSION = 3  # of chunks and tables; a cached index of another version is not used
TABLES = """
CREATE TABLE chunks (
  row INTEGER PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL, heading TEXT NOT NULL, body TEXT NOT NULL
);
CREATE VIRTUAL TABLE words USING fts5 (heading, body, content = '', tokenize = 'ascii');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, row);
"""
RANKED = "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid"


def open_folder(folder: Path, cache: Path | None = None) -> Callable[[str, int], list[Passage]]:
    """Return the search over a folder, cached as a file in `cache`.

    The search may be called from several threads. Raises DemeanorError if there is no such folder, DataError
    that lists every file that cannot be read.
    """
    return _open(tuple(read_folder(folder).items()), cache)


@lru_cache(maxsize=16)
def _open(files: tuple[tuple[str, str], ...], cache: Path | None) -> Callable[[str, int], list[Passage]]:
    found = [chunk for name, text in files for chunk in chunks(name, text)]
    connection = _in_memory(found) if cache is None else _cached(found, cache)
    lock = threading.Lock()

    def search(query: str, k: int) -> list[Passage]:
        whole = len(query) <= 2 * MAX_READ
        terms = query_terms(query if whole else f"{query[:MAX_READ]} {query[-MAX_READ:]}")
        best: dict[str, Passage] = {}  # by text: passages that say the same fill one place
        with lock:
            if len(terms) > MAX_TERMS:
                terms = _rarest(connection, terms)
            if not terms or k < 1:
                return []
            weights = _rarity(connection, terms)
            for row, score in connection.execute(RANKED, (expression(terms),)):
                chunk = "SELECT id, source, heading, body FROM chunks WHERE row = ?"
                id_, source, heading, body = connection.execute(chunk, (row,)).fetchone()
                said = " ".join(body.split())
                if said not in best:
                    covered = _coverage(weights, {*index_terms(heading), *index_terms(body)})
                    best[said] = Passage(id_, body, score, source, coverage=covered)
                if len(best) == k:
                    break
        return list(best.values())

    return search


def _rarest(connection: sqlite3.Connection, terms: list[str]) -> list[str]:
    """Return the MAX_TERMS terms that stand in the fewest passages, but in one at least."""
    count = "SELECT doc FROM vocabulary WHERE term = ?"
    known = [(row[0], term) for term in terms if (row := connection.execute(count, (term,)).fetchone())]
    return [term for _, term in sorted(known)[:MAX_TERMS]]


def _rarity(connection: sqlite3.Connection, terms: list[str]) -> dict[str, float]:
    """Return ln(1 + (N - n + 0.5) / (n + 0.5)) of each term, which stands in n of N passages: largest where it is in none."""
    passages = connection.execute("SELECT count(*) FROM chunks").fetchone()[0]
    count = "SELECT coalesce(max(doc), 0) FROM vocabulary WHERE term >= ? AND term <= ?"
    weights = {}
    for term in terms:
        bare = term.removesuffix("*")
        last = bare + "\U0010ffff" if term.endswith("*") else term
        n = connection.execute(count, (bare, last)).fetchone()[0]
        weights[term] = math.log(1 + (passages - n + 0.5) / (n + 0.5))
    return weights


def _coverage(weights: dict[str, float], said: set[str]) -> float:
    """Return the share of the weights whose terms are among those said."""
    covered = sum(
        weight
        for term, weight in weights.items()
        if term in said or (term.endswith("*") and any(word.startswith(term[:-1]) for word in said))
    )
    return covered / sum(weights.values())


def expression(terms: list[str]) -> str:
    """Return the FTS5 expression for any of these terms; they are quoted, so none is syntax."""
    return " OR ".join(f'"{term.removesuffix("*")}"{" *" * term.endswith("*")}' for term in terms)


# ---- words ----

ASCII_WORD = re.compile(r"[a-z0-9]+")
POINTS = re.compile(r"[\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]")  # vowels of Hebrew and Arabic
LETTERS = str.maketrans(
    {"\u0131": "i", "\u00f8": "o", "\u00e6": "ae", "\u0153": "oe", "\u0142": "l", "\u0111": "d"}
)
SPELLED = str.maketrans({"\u00e4": "ae", "\u00f6": "oe", "\u00fc": "ue", "\u00f8": "oe", "\u00e5": "aa"})
# Letters of scripts that are written without spaces, or (Hangul) whose words take endings.
UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x11FF),  # Burmese, Hangul
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x318F),  # kana, Bopomofo, Hangul
    (0x31F0, 0x9FFF),  # kana, Han
    (0xAC00, 0xD7FF),  # Hangul
    (0x20000, 0x3FFFF),  # Han
)


def index_terms(text: str) -> list[str]:
    """Return the terms under which a text is found: its words, and pairs of characters of unspaced scripts.

    Each character of such a script begins a term, so a single one is found as the beginning of a term.
    """
    terms: list[str] = []
    for unspaced, units in runs(text):
        terms += [*map("".join, pairwise(units)), units[-1]] if unspaced else units
    return terms


def query_terms(text: str) -> list[str]:
    """Return the distinct terms that a query looks for; one that ends in * is the beginning of terms."""
    terms: dict[str, None] = {}
    for unspaced, units in runs(text):
        if unspaced:
            units = [*map("".join, pairwise(units))] or [f"{units[0]}*"]
        terms |= dict.fromkeys(units)
    return list(terms)


def runs(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Yield a text's folded words: (False, a word and how else it is spelled) or (True, unspaced characters)."""
    if text.isascii():
        for found in ASCII_WORD.finditer(text.lower()):
            yield False, [found[0][:MAX_TERM]]
        return
    marks = groupby(text, lambda c: kind(c) == "mark")  # sorting a long row of marks takes quadratic time
    text = "".join("".join(islice(row, 8 if is_mark else None)) for is_mark, row in marks)
    text = unicodedata.normalize("NFKC", text).casefold()
    for word, spelled in zip(
        _split(_bare(text)), _split(_bare(unicodedata.normalize("NFC", text).translate(SPELLED)))
    ):
        for unspaced, characters in groupby(_characters(word), lambda c: kind(c[0]) == "unspaced"):
            if unspaced:
                yield True, list(characters)
            else:
                yield False, ["".join(characters)[:MAX_TERM]]
        if word != spelled:
            yield False, [spelled[:MAX_TERM]]


def _bare(text: str) -> str:
    """Return a text without accents, invisible characters and ligatures."""
    bare = "".join(map(fold, unicodedata.normalize("NFKD", text)))
    return unicodedata.normalize("NFC", POINTS.sub("", bare)).translate(LETTERS)


def _split(text: str) -> list[str]:
    return "".join(c if kind(c) != "gap" else " " for c in text).split(" ")


def _characters(word: str) -> list[str]:
    """Return the characters of a word, each with the marks that follow it."""
    found: list[str] = []
    for c in word:
        if found and kind(c) == "mark":
            found[-1] += c
        else:
            found.append(c)
    return found


@lru_cache(maxsize=65536)
def kind(character: str) -> str:
    """Return what a character is to the index: part of a word, a mark on one, unspaced, or a gap."""
    if unicodedata.category(character).startswith("M"):
        return "mark"
    if not character.isalnum():
        return "gap"
    return "unspaced" if any(a <= ord(character) <= b for a, b in UNSPACED) else "word"


# ---- tables ----


def _in_memory(found: list[Chunk]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    _fill(connection, found)
    return connection


def _cached(found: list[Chunk], cache: Path) -> sqlite3.Connection:
    """Return the index of these chunks from a file named after their content; it is written atomically."""
    total = hashlib.sha256(repr((VERSION, found)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    path = cache / f"index-{total}.db"
    if not path.exists():
        with replacing(path, shared=True) as part, contextlib.closing(sqlite3.connect(part)) as connection:
            _fill(connection, found)
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _fill(connection: sqlite3.Connection, found: list[Chunk]) -> None:
    try:
        connection.executescript(TABLES)
    except sqlite3.OperationalError as error:
        raise DemeanorError(f"this Python's SQLite cannot search text ({error}); it needs FTS5") from None
    connection.executemany(
        "INSERT INTO chunks (row, id, source, heading, body) VALUES (?, ?, ?, ?, ?)",
        [(i, c.id, c.source, c.heading, c.body) for i, c in enumerate(found)],
    )
    connection.executemany(
        "INSERT INTO words (rowid, heading, body) VALUES (?, ?, ?)",
        [(i, " ".join(index_terms(c.heading)), " ".join(index_terms(c.body))) for i, c in enumerate(found)],
    )
    connection.commit()
