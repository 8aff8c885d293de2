"""Reads pages: blocks of commands, code and settings, and the comments that say what a block needs to be run.

    <!-- test page: needs: [demo, my-desk], level: quick -->      for the whole page
    <!-- test: skip: gpu -->                                      for the next block
    <!-- test: at: {"--urls": {skip: network}}, exit: 1 -->       for the commands of the next block that contain a text

A block without a language holds commands: lines that begin with `$ ` and what they print, or only commands. A block of
`text` is a picture, a formula or an output; it is compared with the last command if its comment has `output`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SKIPS = {
    "gpu": "needs a GPU",
    "account": "needs an account or a server of somebody else",
    "docker": "needs Docker",
    "network": "needs the internet",
    "minutes": "takes minutes",
    "program": "needs a program that the extra `dev` does not install",
    "data": "needs weights or data that are not in the repository",
    "fragment": "is a part of something, not a whole",
}
"""Why a block may be left out. The last five say in `by` what runs or checks it instead."""
EXPLAINED = {"minutes", "program", "data", "fragment"}
OUTPUTS = ("words", "exact", "near", "example")
PAGE_KEYS = {"needs", "level", "let", "upstream"}
BLOCK_KEYS = {"skip", "by", "level", "let", "exit", "output", "before", "seconds", "at", "save", "into", "as"}
AT_KEYS = {"skip", "by", "exit", "output", "let", "seconds", "level", "before"}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.M | re.S)
COMMENT = re.compile(r"<!-- test: (.*?) -->\s*\Z", re.S)
PAGE_COMMENT = re.compile(r"<!-- test page: (.*?) -->", re.S)


WRITTEN = {"README of init --remote": {"upstream": 8001, "level": "full"}}
"""Pages that a command writes for its reader, and their settings; `place.written` makes them."""


class PageError(Exception):
    """A comment of a page that cannot be read: where, what, and what is known."""


@dataclass(frozen=True)
class Command:
    """One command of a page, with what the page says that it prints."""

    page: str
    line: int
    text: str
    printed: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Block:
    """One fenced block and the settings of the comment before it."""

    page: str
    line: int
    language: str
    text: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[Command]:
        """The commands of a block without a language, each with its own settings."""
        found = list(_commands(self)) if self.language == "" else []
        for text in self.settings.get("at", {}):
            if not any(text in command.text for command in found):
                raise PageError(f"{self.where}: no command of this block contains {text!r}")
        return found


@dataclass(frozen=True)
class Page:
    """A page of the documentation."""

    name: str
    settings: dict[str, Any] = field(hash=False)
    blocks: tuple[Block, ...]


def names() -> list[str]:
    """Every page that a reader of the repository meets."""
    folders = [p for top in ("docs", "examples") for p in sorted((ROOT / top).rglob("*.md"))]
    first = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    prompts = {p for p in folders if p.parent.name == "prompts"}
    pages = [p.relative_to(ROOT).as_posix() for p in [*first, *folders] if p not in prompts]
    return [*pages, *WRITTEN]


def read(name: str) -> Page:
    """A page as it stands; one that a command writes has no blocks before that."""
    if name in WRITTEN:
        return Page(name, dict(WRITTEN[name]), ())
    text = (ROOT / name).read_text(encoding="utf-8")
    return parse(name, text)


def parse(name: str, text: str) -> Page:
    """A page of its text; settings that nothing reads are an error."""
    whole: dict[str, Any] = {}
    outside = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    for found in PAGE_COMMENT.finditer(outside):
        whole |= _settings(f"{name}:{_line(outside, found.start())}", found[1], PAGE_KEYS)
    blocks, end = [], 0
    for found in FENCE.finditer(text):
        line = _line(text, found.start())
        comment = COMMENT.search(text[end : found.start()])
        settings = _settings(f"{name}:{line}", comment[1], BLOCK_KEYS) if comment else {}
        for here in settings.get("at", {}).values():
            _check(f"{name}:{line}", here, AT_KEYS)
        blocks.append(Block(name, line, found[2], textwrap.dedent(found[3]), settings))
        end = found.end()
    comments = len(re.findall(r"<!-- test\b", outside))
    used = len(PAGE_COMMENT.findall(outside)) + sum(bool(block.settings) for block in blocks)
    if comments != used:
        raise PageError(f"{name}: {comments - used} comments `<!-- test ... -->` stand before no block")
    return Page(name, whole, tuple(blocks))


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _settings(where: str, body: str, known: set[str]) -> dict[str, Any]:
    try:
        settings = yaml.safe_load("{" + body + "}")
    except yaml.YAMLError as error:
        raise PageError(f"{where}: not YAML: {body}") from error
    _check(where, settings, known)
    return dict(settings)


def _check(where: str, settings: dict[str, Any], known: set[str]) -> None:
    unknown = sorted(set(settings) - known)
    if unknown:
        raise PageError(f"{where}: unknown {unknown}; known: {sorted(known)}")
    if (reason := settings.get("skip")) is not None:
        if reason not in SKIPS:
            raise PageError(f"{where}: unknown reason {reason!r}; known: {sorted(SKIPS)}")
        if reason in EXPLAINED and not settings.get("by"):
            raise PageError(f"{where}: skip: {reason} says in `by` what runs it instead")
    if settings.get("output", "words") not in OUTPUTS:
        raise PageError(f"{where}: unknown output {settings['output']!r}; known: {OUTPUTS}")
    if settings.get("level", "quick") not in ("quick", "full"):
        raise PageError(f"{where}: unknown level {settings['level']!r}; known: quick, full")


def _commands(block: Block) -> Iterator[Command]:
    """Lines that begin with `$ `, or all lines; one that ends in a backslash goes on; a here-document goes to an empty line."""
    session = any(line.startswith("$ ") for line in block.text.splitlines())
    text, printed, at, whole = "", [], 0, block.settings
    lines = block.text.splitlines()

    def made() -> Command:
        own = {k: v for k, v in whole.items() if k not in ("at", "before", "exit", "save")}
        for part, here in whole.get("at", {}).items():
            own |= here if part in text else {}
        kept = printed[:-1] if printed and not printed[-1].strip() else printed
        return Command(block.page, block.line + at, without_comment(text), tuple(kept), own)

    i = 0
    while i < len(lines):
        line = lines[i]
        if line.startswith("$ ") or (not session and line.strip()):
            if text:
                yield made()
            text, printed, at = line.removeprefix("$ "), [], i + 1
            while text.split("  #")[0].rstrip().endswith("\\") and i + 1 < len(lines):
                i += 1
                text = text.rstrip().removesuffix("\\").rstrip() + " " + lines[i].strip()
        elif text:
            printed.append(without_comment(line) if session else line)
        i += 1
    if text:
        yield made()


def without_comment(text: str) -> str:
    """A command without the remark after it: two spaces and a `#`."""
    return re.split(r"\s{2,}#\s|\s+#$", text)[0].rstrip()
