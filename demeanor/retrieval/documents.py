"""A folder's documents as text, cut into passages.

In: a folder. Out: passages with ids `name#number`, counted from 1, each with its place in the document. A .txt
file has one passage a line; a .md, .html or .docx file one a paragraph, list item, table or code block; a .pdf
file pieces of a page; a .jsonl file one a row. Long ones are cut between sentences or words, tables and code
between lines. A file whose encoding is not certain is refused, so no text is ever garbled.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from demeanor.core.errors import DataError, DemeanorError
from demeanor.retrieval import formats

log = logging.getLogger("demeanor.retrieval")

MAX_CHARACTERS = (
    1000  # of a passage, unless the search says otherwise; blocks of code and tables have BLOCK times as many
)
BLOCK = 4
MAX_BLOCK = BLOCK * MAX_CHARACTERS
MAX_FILE = 64 << 20  # bytes
SUFFIXES = {".md", ".txt", ".jsonl", ".html", ".htm", ".pdf", ".docx"}
HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
ITEM = re.compile(r"(?:[-*+]|\d{1,3}[.)])\s+")
BULLET = re.compile(r"^[-*+]\s+")
FENCE = re.compile(r"[\s>]*(?:(?:[-*+]|\d{1,3}[.)])\s+)?(`{3,}(?=[^`]*$)|~{3,})")
SENTENCE_END = re.compile(r"[.!?](?=\s)|[\u3002\uff01\uff1f]")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage; `heading` is searched too but is not part of its text.

    `start` and `end` are its characters in the document's text, `page` (from 1) that of a .pdf file.
    """

    id: str
    source: str
    heading: str
    body: str
    start: int = 0
    end: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text, in lines that end in a line feed; `pages`: where each page of a .pdf file begins."""

    text: str
    pages: tuple[int, ...] = ()


def files_of(folder: Path, refused: list[str] | None = None) -> dict[str, Path]:
    """Return a folder's documents by name; links that lead out of the folder are not followed.

    Raises DemeanorError if there is no such folder. A name that cannot be shown is an entry of `refused`, or a
    DataError that lists every file that cannot be read.
    """
    if not folder.is_dir():
        raise DemeanorError(f"{folder}: no such folder to search")
    found: dict[str, Path] = {}
    wrong: list[str] = []
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
                found[_name(inside)] = path
            except ValueError as error:
                wrong.append(f"{str(path)!r}: {error}")
    if wrong and refused is None:
        read_folder(folder)
    (refused if refused is not None else []).extend(wrong)
    return found


def read_file(path: Path, data: bytes | None = None) -> Document:
    """Return one document; raises ValueError that says why it cannot be read."""
    data = path.read_bytes() if data is None else data
    if len(data) > MAX_FILE:
        raise ValueError(f"it has {len(data) >> 20} MiB; at most {MAX_FILE >> 20} are read; split it")
    suffix = path.suffix.lower()
    if suffix == ".pdf":
        pages = [lines_of(page).strip("\n") + "\n\n" for page in formats.pdf(data)]
        found = Document("".join(pages), tuple(accumulate(map(len, pages[:-1]), initial=0)))
    elif suffix == ".docx":
        found = Document(lines_of(formats.docx(data)))
    elif suffix in (".html", ".htm"):
        found = Document(lines_of(formats.html(_page_text(data))))
    else:
        found = Document(lines_of(decoded(data)))
        if suffix == ".jsonl":
            list(_rows(path.name, found.text))
        return found
    if not found.text.strip():
        raise ValueError("no text was found in it; a scanned page needs text recognition first")
    return found


CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)


def _page_text(data: bytes) -> str:
    """Return the source of a web page, in the encoding that it declares if it is not UTF-8."""
    try:
        return decoded(data)
    except ValueError:
        declared = CHARSET.search(data[:4096])
        if declared is None:
            raise
        try:
            return data.decode(declared[1].decode("ascii"))
        except (LookupError, UnicodeDecodeError):
            raise ValueError(f"it is not in the encoding that it declares, {declared[1]!r}") from None


def read_folder(folder: Path) -> dict[str, Document]:
    """Return a folder's documents by name; raises DataError that lists every file that cannot be read."""
    documents: dict[str, Document] = {}
    refused: list[str] = []
    for name, path in files_of(folder, refused).items():
        try:
            documents[name] = read_file(path)
        except (OSError, ValueError) as error:
            refused.append(f"{str(path)!r}: {error}")
    _refuse(folder, refused)
    return documents


def _refuse(folder: Path, refused: list[str]) -> None:
    if refused:
        raise DataError(
            f"{folder}: {len(refused)} of its files cannot be indexed:\n  " + "\n  ".join(refused)
        )


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


def lines_of(text: str) -> str:
    """Return a text whose lines end in a line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def chunks(name: str, document: Document | str, limit: int = MAX_CHARACTERS) -> list[Chunk]:
    """Return the passages of one document in order, of at most `limit` characters; raises ValueError for a row of a .jsonl file that is none."""
    document = Document(lines_of(document)) if isinstance(document, str) else document
    text, suffix = document.text, Path(name).suffix.lower()
    if suffix == ".jsonl":
        return list(_rows(name, text, limit))
    found: Iterator[Chunk]
    if document.pages:
        bounds = [*document.pages, len(text)]
        pages = pairwise(bounds)
        found = (
            Chunk("", name, "", " ".join(text[a:b].split()), a, b, number)
            for number, (start, end) in enumerate(pages, 1)
            for a, b in _page(text, start, end, limit)
        )
    elif suffix == ".txt":
        found = (
            Chunk("", name, "", text[start + a : start + b], start + a, start + b)
            for start, line in _placed(text)
            for a, b in spans(line, limit)
        )
    else:
        found = _blocks(name, text, limit)
    return [
        Chunk(f"{name}#{i}", name, c.heading, c.body, c.start, c.end, c.page) for i, c in enumerate(found, 1)
    ]


def _placed(text: str) -> Iterator[tuple[int, str]]:
    """Yield where each line begins, and the line."""
    at = 0
    for line in text.split("\n"):
        yield at, line
        at += len(line) + 1


def _page(text: str, start: int, end: int, limit: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of a page's passages: a page has no marks of paragraphs that can be relied on."""
    return ((start + a, start + b) for a, b in spans(text[start:end], limit))


ROW = {"text", "id", "title", "source", "page"}
WANTED_ROW = '{"text", "id", "title", "source", "page"}, all but the text optional'


def _rows(name: str, text: str, limit: int = MAX_CHARACTERS) -> Iterator[Chunk]:
    """Yield the passages of texts that somebody else cut, one row each; long ones are cut further.

    The source of a row is its `source` or its id, or the file's name where it has none. Raises ValueError that names
    the line.
    """
    counts: Counter[str] = Counter()
    for number, (start, line) in enumerate(_placed(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number} is no JSON: {error}") from None
        if not isinstance(row, dict) or "text" not in row or not set(row) <= ROW:
            got = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"line {number} has {got or 'nothing'}; wanted {WANTED_ROW}")
        page = row.pop("page", None)
        if not (page is None or (isinstance(page, int) and page > 0)):
            raise ValueError(f"line {number}: page: got {page!r}, wanted a number from 1")
        if wrong := [key for key, value in row.items() if not isinstance(value, str)]:
            raise ValueError(f"line {number}: {wrong[0]} is no text")
        named = row.get("id") or name
        for part in cut(row["text"], limit):
            counts[named] += 1
            source, id_ = row.get("source") or named, f"{named}#{counts[named]}"
            yield Chunk(id_, source, row.get("title", ""), part, start, start + len(line), page)


class _Paragraph:
    """Lines that are joined by spaces, and where each of them stands in the document."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._starts: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, line: str, start: int) -> None:
        self._lines.append(line)
        self._starts.append(start)

    def pieces(self, limit: int) -> Iterator[tuple[str, int, int]]:
        """Yield the passages of the paragraph with their places in the document."""
        text = " ".join(self._lines)
        joined = [0, *accumulate(len(line) + 1 for line in self._lines)]

        def place(at: int) -> int:
            line = bisect_right(joined, at, hi=len(self._lines)) - 1
            return self._starts[line] + at - joined[line]

        for a, b in spans(text, limit):
            yield text[a:b], place(a), place(b - 1) + 1


def _blocks(name: str, text: str, limit: int) -> Iterator[Chunk]:
    """Yield the passages of Markdown with their headings; wrapped lines of a paragraph are joined.

    A heading with nothing under it is a passage itself.
    """
    lines, starts = text.split("\n"), [start for start, _ in _placed(text)]
    headings: dict[int, str] = {}
    paragraph = _Paragraph()
    at, listed, bare = 0, False, -1  # bare: the line of the last heading if nothing stands under it yet

    def chunk(heading: str, body: str, start: int, end: int) -> Chunk:
        return Chunk("", name, heading, body, start, end)

    def title_alone() -> Iterator[Chunk]:
        *above, title = headings.values()
        place = starts[bare], starts[bare] + len(lines[bare])
        return (chunk(" / ".join(above), part, *place) for part in cut(title, limit))

    while at <= len(lines):
        raw = lines[at] if at < len(lines) else ""
        line = raw.strip()
        heading, item = HEADING.match(raw), ITEM.match(line)
        end = whole(lines, at, indented=not listed and not paragraph)
        if paragraph and (not line or heading or item or end > at):
            for piece, *place in paragraph.pieces(limit):
                yield chunk(" / ".join(headings.values()), piece, *place)
            paragraph = _Paragraph()
        if end > at:
            bare = -1
            for part in cut_lines(lines[at:end], limit):
                yield chunk(
                    " / ".join(headings.values()), part, starts[at], starts[end - 1] + len(lines[end - 1])
                )
        elif heading:
            level = len(heading[1])
            if bare >= 0 and level <= max(headings):
                yield from title_alone()
            headings = {k: v for k, v in headings.items() if k < level} | {level: _title(line)}
            bare = at
        elif line:
            bare = -1
            listed = bool(item) or (listed and (bool(paragraph) or raw[0].isspace()))
            words = BULLET.sub("", line)
            paragraph.add(words, starts[at] + len(raw.rstrip()) - len(words))
        at = max(end, at + 1)
    if bare >= 0:
        yield from title_alone()


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
    return (text[a:b] for a, b in spans(text, limit))


def spans(text: str, limit: int = MAX_CHARACTERS) -> Iterator[tuple[int, int]]:
    """Yield where the pieces of `cut` stand; none begins or ends with a space."""
    at = len(text) - len(text.lstrip())
    while len(text) - at > limit:
        window = text[at : at + limit + 1]
        end = max((m.end() for m in SENTENCE_END.finditer(window) if m.end() <= limit), default=0)
        end = end or next((i for i in range(limit, 0, -1) if window[i].isspace()), 0)
        end = end or next((i for i in range(limit, 0, -1) if not window[i - 1].isalnum()), limit)
        if piece := window[:end].rstrip():
            yield at, at + len(piece)
        at += end
        at += len(window[end:]) - len(window[end:].lstrip())
    if rest := text[at:].strip():
        start = at + len(text[at:]) - len(text[at:].lstrip())
        yield start, start + len(rest)


def cut_lines(lines: list[str], limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """Yield a code block or table, whole if it has at most 4 times `limit` characters; else in pieces that each have
    the fence, or the head of the table."""
    text = "\n".join(lines)
    most = BLOCK * limit
    if len(text) <= most:
        yield text
        return
    fence = FENCE.match(lines[0])
    head = lines[:1] if fence else lines[:2] if _is_rule("".join(lines[1:2])) else []
    tail = [fence[1]] if fence else []
    if sum(map(len, head + tail)) > limit:
        yield from cut(text, limit)
        return
    room = most - len("\n".join([*head, "", *tail]))
    closed = fence and lines[-1].strip().startswith(fence[1])
    piece = ""
    for line in lines[len(head) : -1 if closed else None]:
        for part in cut(line, room) if len(line) > room else [line]:
            if piece and len(piece) + 1 + len(part) > room:
                yield "\n".join([*head, piece, *tail])
                piece = ""
            piece = f"{piece}\n{part}" if piece else part
    yield "\n".join([*head, piece, *tail])
