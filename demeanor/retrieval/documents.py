"""A folder's .md, .txt and .jsonl files as text, cut into passages.

In: a folder. Out: passages with ids `name#number`, counted from 1. A .txt file has one passage a line, a .md
file one a paragraph, list item, table or code block, a .jsonl file one a row ({"text", "id", "title"}). Long ones
are cut between sentences or words, tables and code between lines. A file whose encoding is not certain is
refused, so no text is ever garbled.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demeanor.core.errors import DataError, DemeanorError

log = logging.getLogger("demeanor.retrieval")

MAX_CHARACTERS, MAX_BLOCK = 1000, 4000
SUFFIXES = {".md", ".txt", ".jsonl"}
ROW = {"text", "id", "title"}
HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
ITEM = re.compile(r"(?:[-*+]|\d{1,3}[.)])\s+")
BULLET = re.compile(r"^[-*+]\s+")
FENCE = re.compile(r"[\s>]*(?:(?:[-*+]|\d{1,3}[.)])\s+)?(`{3,}(?=[^`]*$)|~{3,})")
SENTENCE_END = re.compile(r"[.!?](?=\s)|[\u3002\uff01\uff1f]")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage; `heading` is searched too but is not part of its text."""

    id: str
    source: str
    heading: str
    body: str


def read_folder(folder: Path) -> dict[str, str]:
    """Return the texts of a folder's documents by name; links that lead out of the folder are not followed.

    Raises DemeanorError if there is no such folder, DataError that lists every file that cannot be read.
    """
    if not folder.is_dir():
        raise DemeanorError(f"{folder}: no such folder to search")
    texts: dict[str, str] = {}
    refused: list[str] = []
    home = folder.resolve()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(part.startswith(".") for part in inside.parts):
            continue
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # a link that leads to itself
            target = Path("/")
        if not target.is_relative_to(home):
            log.warning("%r is not indexed: it leads out of the folder", str(path))
        elif target.is_file():  # not a folder, a pipe or a device
            try:
                text = decoded(target.read_bytes())
                if path.suffix.lower() == ".jsonl":
                    list(_rows(text, inside.as_posix()))
                texts[_name(inside)] = text
            except (OSError, ValueError) as error:
                refused.append(f"{str(path)!r}: {error}")
    if refused:
        raise DataError(
            f"{folder}: {len(refused)} of its files cannot be indexed:\n  " + "\n  ".join(refused)
        )
    return texts


def _name(path: Path) -> str:
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in path.as_posix()):
        raise ValueError("its name holds control characters or is not UTF-8; rename it")
    return path.as_posix()


BOMS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\x00\x00", "utf-32-le"),  # begins as UTF-16 does
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
ISO_2022 = re.compile(r"\x1b[$(][@A-J]")  # Japanese and Korean mail: its bytes are valid ASCII
CONTROL = re.compile(r"[\0-\x08\x0e-\x1f\x7f]")
# A file without a mark that is not UTF-8 is read as cp1252 only if its letters are those of one language that
# is written in it: other encodings of the same bytes give letters that no such language has together.
ALPHABETS = (
    *("àâæçéèêëîïôœùûü", "áéíóúñü", "áâãàçéêíóôõúü", "àèéìíîòóùú"),  # French, Spanish, Portuguese, Italian
    *("àçéèíïóòúü", "åæøäöéü", "áéèêëíïóöúü"),  # Catalan, Nordic, Dutch
    "áâäçéëíîóôöúüß",  # German, and what are the same bytes in Central European and Turkish files
)
LETTER = r"[^\W\d_\xaa\xb2\xb3\xb9\xba\xbc-\xbe]"
LETTERS = re.compile(f"{LETTER}+")
ODD = re.compile(  # signs between letters, before a letter or after one that do not stand there in cp1252
    rf"{LETTER}[^\x00-\x7f\w\u2019\xb7\u2013\u2014\xad](?={LETTER})|[\xa2-\xa6\xa8\xac\xaf\xb3\xb4\xb8\xb9](?={LETTER})"
    rf"|{LETTER}(?:[\xa3-\xa6\xa8\xac\xaf\xb1\xb6\xb8\xb9\xbc-\xbf]|(?<![Mm])\xb3)"
)


def decoded(data: bytes) -> str:
    """Return a file's text; raises ValueError if its encoding is not certain."""
    mark, encoding = next((x for x in BOMS if data.startswith(x[0])), (b"", "utf-8"))
    zeros = [data[side::2].count(0) for side in (0, 1)]
    if not mark and any(zeros):
        if all(zeros) or max(zeros) * 8 < len(data) * 3:
            raise ValueError("it holds zero bytes; it is not text, or not in UTF-8")
        encoding = "utf-16-be" if zeros[0] else "utf-16-le"
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if mark or any(zeros):
            raise ValueError(f"it is not valid {encoding} (byte {error.start}); save it as UTF-8") from None
        return _western(data, error.start)
    if "\0" in text or ISO_2022.search(text):
        raise ValueError("it is not plain text: it holds zero bytes or escapes of ISO-2022; save it as UTF-8")
    return text


def _western(data: bytes, at: int) -> str:
    """Return bytes of which the one at `at` is not UTF-8 as cp1252; raises ValueError if that is uncertain."""
    text = data.decode("cp1252", errors="ignore")
    words = LETTERS.findall(text.lower())
    foreign = "".join(c for word in words for c in word if not c.isascii())
    whole_words = all(len(word) == 1 or re.search("[a-z]", word) for word in words)
    one_language = any(set(foreign) <= set(letters) for letters in ALPHABETS)
    exact = len(text) == len(data) and not CONTROL.search(text) and not ODD.search(text)
    if not (exact and whole_words and one_language and 2 * len(foreign) <= len("".join(words))):
        raise ValueError(f"byte {at} is not UTF-8 and the encoding is uncertain; save the file as UTF-8")
    return text


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def chunks(name: str, text: str) -> list[Chunk]:
    """Return the passages of one file in order."""
    if name.lower().endswith(".jsonl"):
        counts: Counter[str] = Counter()
        cuts = ((source, title, part) for source, title, text in _rows(text, name) for part in cut(text))
        return [
            Chunk(f"{source}#{_next(counts, source)}", source, title, part) for source, title, part in cuts
        ]
    if name.lower().endswith(".md"):
        found = _blocks(_lines(text).split("\n"))
    else:
        found = (("", part) for line in _lines(text).split("\n") for part in cut(line.strip()))
    return [Chunk(f"{name}#{i}", name, heading, body) for i, (heading, body) in enumerate(found, start=1)]


def _next(counts: Counter[str], name: str) -> int:
    counts[name] += 1
    return counts[name]


def _rows(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield source, title and text of each row of a .jsonl file; raises ValueError that names the line.

    The source of a row is its id, or the file's name where it has none.
    """
    for at, line in enumerate(_lines(text).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {at} is no JSON: {error}") from None
        if not isinstance(row, dict) or "text" not in row or not set(row) <= ROW:
            got = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(
                f'line {at} has {got or "nothing"}; wanted {{"text", "id", "title"}}, the last two optional'
            )
        if wrong := [key for key, value in row.items() if not isinstance(value, str)]:
            raise ValueError(f"line {at}: {wrong[0]} is no text")
        yield row.get("id") or name, row.get("title", ""), row["text"]


def _blocks(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the passages of Markdown with their headings; wrapped lines of a paragraph are joined.

    A heading with nothing under it is a passage itself.
    """
    headings: dict[int, str] = {}
    paragraph: list[str] = []
    at, listed, bare = 0, False, False  # bare: nothing stands under the last heading yet
    while at <= len(lines):
        raw = lines[at] if at < len(lines) else ""
        line = raw.strip()
        heading, item = HEADING.match(raw), ITEM.match(line)
        end = whole(lines, at, indented=not listed and not paragraph)
        if paragraph and (not line or heading or item or end > at):
            for part in cut(" ".join(paragraph)):
                yield " / ".join(headings.values()), part
            paragraph = []
        if end > at:
            bare = False
            for part in cut_lines(lines[at:end]):
                yield " / ".join(headings.values()), part
        elif heading:
            level = len(heading[1])
            if bare and level <= max(headings):
                yield from _title_alone(headings)
            headings = {k: v for k, v in headings.items() if k < level} | {level: _title(line)}
            bare = True
        elif line:
            bare = False
            listed = bool(item) or (listed and (bool(paragraph) or raw[0].isspace()))
            paragraph.append(BULLET.sub("", line))
        at = max(end, at + 1)
    if bare:
        yield from _title_alone(headings)


def _title_alone(headings: dict[int, str]) -> Iterator[tuple[str, str]]:
    *above, title = headings.values()
    for part in cut(title):
        yield " / ".join(above), part


def _title(line: str) -> str:
    """Return a heading without its number signs; closing ones stand after a space."""
    title = line.lstrip("#").strip()
    shorter = title.rstrip("#")
    return shorter.rstrip() if not shorter or shorter[-1].isspace() else title


def whole(lines: list[str], at: int, *, indented: bool) -> int:
    """Return where a code block or table that begins at a line ends; `at` if none begins there."""
    end = at
    if at == len(lines) or not lines[at].strip():
        return at
    if fence := FENCE.match(lines[at]):
        mark = fence[1]
        closing = re.compile(rf"[\s>]*{mark[0]}{{{len(mark)},}}\s*")
        return next((i + 1 for i in range(at + 1, len(lines)) if closing.fullmatch(lines[i])), len(lines))
    if _is_row(lines, at):
        while end < len(lines) and "|" in lines[end]:
            end += 1
    elif indented:
        while end < len(lines) and (not lines[end].strip() or lines[end].startswith(("    ", "\t"))):
            end += 1
        while end > at and not lines[end - 1].strip():
            end -= 1
    return end


def _is_row(lines: list[str], at: int) -> bool:
    """True if a table begins at a line: it starts with a bar, or the next line underlines its columns."""
    if "|" not in lines[at]:
        return False
    return lines[at].lstrip().startswith("|") or _is_rule("".join(lines[at + 1 : at + 2]))


def _is_rule(line: str) -> bool:
    return {"|", "-"} <= set(line) <= set("|-: \t")


def cut(text: str, limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """Yield pieces of at most `limit` characters, cut after sentences, else between words, else anywhere."""
    at = 0
    while len(text) - at > limit:
        window = text[at : at + limit + 1]
        end = max((m.end() for m in SENTENCE_END.finditer(window) if m.end() <= limit), default=0)
        end = end or next((i for i in range(limit, 0, -1) if window[i].isspace()), 0)
        end = end or next((i for i in range(limit, 0, -1) if not window[i - 1].isalnum()), limit)
        if piece := window[:end].strip():
            yield piece
        at += end
        at += len(window[end:]) - len(window[end:].lstrip())
    if rest := text[at:].strip():
        yield rest


def cut_lines(lines: list[str]) -> Iterator[str]:
    """Yield a code block or table, whole if it has at most MAX_BLOCK characters; else in pieces that each have
    the fence, or the head of the table."""
    text = "\n".join(lines)
    if len(text) <= MAX_BLOCK:
        yield text
        return
    fence = FENCE.match(lines[0])
    head = lines[:1] if fence else lines[:2] if _is_rule("".join(lines[1:2])) else []
    tail = [fence[1]] if fence else []
    if sum(map(len, head + tail)) > MAX_CHARACTERS:
        yield from cut(text)
        return
    room = MAX_BLOCK - len("\n".join([*head, "", *tail]))
    closed = fence and lines[-1].strip().startswith(fence[1])
    piece = ""
    for line in lines[len(head) : -1 if closed else None]:
        for part in cut(line, room) if len(line) > room else [line]:
            if piece and len(piece) + 1 + len(part) > room:
                yield "\n".join([*head, piece, *tail])
                piece = ""
            piece = f"{piece}\n{part}" if piece else part
    yield "\n".join([*head, piece, *tail])
