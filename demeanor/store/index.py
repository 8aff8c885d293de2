"""Full-text search over a folder of .md and .txt files: SQLite FTS5, ranked by BM25.

In: a folder. Out: search(query, k), the best passages first, scores positive. A query is words and nothing else: no text a user
can write is syntax of the search engine. An index is built once per content, in memory or under a cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from demeanor.errors import DemeanorError
from demeanor.store.chunks import Chunk, chunks
from demeanor.types import Passage

WORD = re.compile(r"\w+")
MAX_TERMS, MAX_TERM = 64, 64
SUFFIXES = {".md", ".txt"}
VERSION = 1
"""Of the chunks and tables; a cached index of another version is not used."""
TABLES = """
CREATE TABLE chunks (row INTEGER PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL, body TEXT NOT NULL);
CREATE VIRTUAL TABLE words USING fts5 (heading, body, tokenize = 'unicode61 remove_diacritics 2');
"""
QUERY = """
SELECT id, source, chunks.body, -bm25(words) AS score FROM words JOIN chunks ON chunks.row = words.rowid
WHERE words MATCH ? ORDER BY bm25(words), chunks.row LIMIT ?
"""


def open_folder(folder: Path, cache: Path | None = None) -> Callable[[str, int], list[Passage]]:
    """The search over a folder; kept as a file under `cache` if given. Raises DemeanorError if there is nothing to search."""
    if not folder.is_dir():
        raise DemeanorError(f"{folder}: no such folder to search")
    files = {
        p.relative_to(folder).as_posix(): p.read_text(encoding="utf-8", errors="replace")
        for p in sorted(folder.rglob("*"))
        if p.suffix.lower() in SUFFIXES
        and p.is_file()
        and not any(part.startswith(".") for part in p.relative_to(folder).parts)
    }
    return _open(tuple(files.items()), cache)


@lru_cache(maxsize=16)
def _open(files: tuple[tuple[str, str], ...], cache: Path | None) -> Callable[[str, int], list[Passage]]:
    found = [chunk for name, text in files for chunk in chunks(name, text)]
    connection = _in_memory(found) if cache is None else _cached(found, cache)
    lock = threading.Lock()

    def search(query: str, k: int) -> list[Passage]:
        terms = match(query)
        if not terms or k < 1:
            return []
        with lock:
            rows = connection.execute(QUERY, (terms, k)).fetchall()
        return [Passage(id_, body, score, source) for id_, source, body, score in rows]

    return search


def match(query: str) -> str:
    """The FTS5 expression of a query: its distinct words, each quoted, any of them; empty if there are none."""
    words = dict.fromkeys(word[:MAX_TERM] for word in WORD.findall(query.casefold()) if word.strip("_"))
    return " OR ".join(f'"{word}"' for word in list(words)[:MAX_TERMS])


def _in_memory(found: list[Chunk]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    _fill(connection, found)
    return connection


def _cached(found: list[Chunk], cache: Path) -> sqlite3.Connection:
    """The index of these chunks as a file named after their content, written whole or not at all."""
    total = hashlib.sha256(repr((VERSION, found)).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    path = cache / f"index-{total}.db"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(part)) as connection:
            _fill(connection, found)
        os.replace(part, path)
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _fill(connection: sqlite3.Connection, found: list[Chunk]) -> None:
    try:
        connection.executescript(TABLES)
    except sqlite3.OperationalError as error:
        raise DemeanorError(f"this Python's SQLite cannot search text ({error}); it needs FTS5") from None
    connection.executemany(
        "INSERT INTO chunks (row, id, source, body) VALUES (?, ?, ?, ?)",
        [(i, c.id, c.source, c.body) for i, c in enumerate(found)],
    )
    connection.executemany(
        "INSERT INTO words (rowid, heading, body) VALUES (?, ?, ?)",
        [(i, c.heading, c.body) for i, c in enumerate(found)],
    )
    connection.commit()
