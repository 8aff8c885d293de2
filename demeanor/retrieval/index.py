"""The search index: a folder's .md and .txt files cut into passages, and BM25 search over them (SQLite FTS5).

In: a folder. Out: a search function (query, k) -> passages with ids `name#number`, counted from 1. A .txt
file has one passage a line, a .md file one a paragraph or list item; long ones are cut between sentences or
words.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from demeanor.core.errors import DemeanorError
from demeanor.core.files import replacing
from demeanor.core.types import Passage

MAX_CHARACTERS = 1000
HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")
ITEM = re.compile(r"(?:[-*+]|\d{1,3}[.)])\s+")
BULLET = re.compile(r"^[-*+]\s+")
END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage; `heading` is searched too but is not part of its text."""

    id: str
    source: str
    heading: str
    body: str


def chunks(name: str, text: str) -> list[Chunk]:
    """Return the passages of one file in order."""
    if name.lower().endswith(".md"):
        found = _paragraphs(text)
    else:
        found = (("", line.strip()) for line in text.splitlines())
    cut = [(heading, part) for heading, body in found if body for part in _cut(body)]
    return [Chunk(f"{name}#{i}", name, heading, body) for i, (heading, body) in enumerate(cut, start=1)]


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Yield paragraphs and list items of Markdown with their headings; wrapped lines are joined."""
    headings: dict[int, str] = {}
    lines: list[str] = []
    for raw in [*text.splitlines(), ""]:
        line = raw.strip()
        heading = HEADING.match(line)
        if lines and (not line or heading or ITEM.match(line)):
            yield " / ".join(headings.values()), " ".join(lines)
            lines = []
        if heading:
            level = line.index(" ") if " " in line else len(line)
            headings = {k: v for k, v in headings.items() if k < level} | {level: heading.group(1)}
        elif line:
            lines.append(BULLET.sub("", line))


def _cut(body: str) -> list[str]:
    """Cut a text into pieces of at most MAX_CHARACTERS, after sentences if possible, else between words."""
    pieces = [""]
    for sentence in END.split(body):
        parts = [sentence]
        if len(sentence) > MAX_CHARACTERS:
            parts = [
                w[i : i + MAX_CHARACTERS] for w in sentence.split() for i in range(0, len(w), MAX_CHARACTERS)
            ]
        for part in parts:
            if pieces[-1] and len(pieces[-1]) + 1 + len(part) > MAX_CHARACTERS:
                pieces.append(part)
            else:
                pieces[-1] = f"{pieces[-1]} {part}".strip()
    return pieces


WORD = re.compile(r"\w+")
MAX_TERMS, MAX_TERM = 64, 64
SUFFIXES = {".md", ".txt"}
VERSION = 1  # of chunks and tables; a cached index of another version is not used
TABLES = """
CREATE TABLE chunks (row INTEGER PRIMARY KEY, id TEXT NOT NULL, source TEXT NOT NULL, body TEXT NOT NULL);
CREATE VIRTUAL TABLE words USING fts5 (heading, body, tokenize = 'unicode61 remove_diacritics 2');
"""
QUERY = """
SELECT id, source, chunks.body, -bm25(words) AS score FROM words JOIN chunks ON chunks.row = words.rowid
WHERE words MATCH ? ORDER BY bm25(words), chunks.row LIMIT ?
"""


def open_folder(folder: Path, cache: Path | None = None) -> Callable[[str, int], list[Passage]]:
    """Return the search over a folder, cached as a file in `cache`; raises DemeanorError if it does not
    exist."""
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
    """Return the FTS5 expression of a query: any of its distinct words, quoted; "" if there are none."""
    words = dict.fromkeys(word[:MAX_TERM] for word in WORD.findall(query.casefold()) if word.strip("_"))
    return " OR ".join(f'"{word}"' for word in list(words)[:MAX_TERMS])


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
        "INSERT INTO chunks (row, id, source, body) VALUES (?, ?, ?, ?)",
        [(i, c.id, c.source, c.body) for i, c in enumerate(found)],
    )
    connection.executemany(
        "INSERT INTO words (rowid, heading, body) VALUES (?, ?, ?)",
        [(i, c.heading, c.body) for i, c in enumerate(found)],
    )
    connection.commit()
