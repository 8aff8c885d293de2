"""Text files cut into passages: of .txt each line, of .md each paragraph and list item under its headings.

In: a file's name and text. Out: chunks with ids `name#number`, counted from 1. A long one is cut between sentences or words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_CHARACTERS = 1000
HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")
ITEM = re.compile(r"(?:[-*+]|\d{1,3}[.)])\s+")
BULLET = re.compile(r"^[-*+]\s+")
END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One passage; `heading` is searched with it and is no part of it."""

    id: str
    source: str
    heading: str
    body: str


def chunks(name: str, text: str) -> list[Chunk]:
    """The passages of one file in order."""
    found = (
        _paragraphs(text)
        if name.lower().endswith(".md")
        else (("", line.strip()) for line in text.splitlines())
    )
    cut = [(heading, part) for heading, body in found if body for part in _cut(body)]
    return [Chunk(f"{name}#{i}", name, heading, body) for i, (heading, body) in enumerate(cut, start=1)]


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """Paragraphs and list items of Markdown with the headings above them; wrapped lines are joined."""
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
    """A body in pieces of at most MAX_CHARACTERS, cut after sentences where it can be, else between words."""
    pieces = [""]
    for sentence in END.split(body):
        words = (
            [sentence]
            if len(sentence) <= MAX_CHARACTERS
            else [
                w[i : i + MAX_CHARACTERS] for w in sentence.split() for i in range(0, len(w), MAX_CHARACTERS)
            ]
        )
        for part in words:
            if pieces[-1] and len(pieces[-1]) + 1 + len(part) > MAX_CHARACTERS:
                pieces.append(part)
            else:
                pieces[-1] = f"{pieces[-1]} {part}".strip()
    return pieces
