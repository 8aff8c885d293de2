"""The chapters of the tour: Markdown of docs/tour/ with a few lines of YAML in front.

In: files of the package. Out: Chapters in order. A chapter names its experiment; its paragraphs "First guess." and "Exercise." are asked, and
the answer of the exercise is checked against the reader's own run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml

from demeanor.core.errors import UsageError

START, END = "<!-- kept -->", "<!-- end of kept -->"
NOTE = re.compile(r"^<!-- test.*-->\n", re.M)
"""What a chapter says to the tests of its commands."""
SMOLLM2_PICTURE = "smollm2-"
"""In front of the name of a picture of SmolLM2's kept results."""
SMOLLM2_START, SMOLLM2_END = "<!-- kept of SmolLM2 -->", "<!-- end of kept of SmolLM2 -->"


@dataclass(frozen=True, slots=True)
class Chapter:
    """One chapter; `text` is its Markdown without the lines in front, `key` names the answer of its exercise in Findings.answers."""

    number: int
    slug: str
    title: str
    experiment: str
    guess: str
    exercise: str
    key: str
    text: str

    @property
    def command(self) -> str:
        return f"demeanor tour run {self.number}"


@cache
def chapters() -> tuple[Chapter, ...]:
    """All chapters in order."""
    folder = files("demeanor.tour").joinpath("chapters")
    named = sorted((f for f in folder.iterdir() if re.match(r"\d\d-", f.name)), key=lambda f: f.name)
    return tuple(parsed(file.name, file.read_text(encoding="utf-8")) for file in named)


def parsed(name: str, text: str) -> Chapter:
    """A chapter from the text of its file, NN-SLUG.md."""
    _, front, body = NOTE.sub("", text).split("---\n", 2)
    given = yaml.safe_load(front)
    title = re.search(r"^# (?:\d+\. )?(.+)$", body, re.M)
    assert title is not None, f"{name}: has no heading"
    return Chapter(
        int(name[:2]),
        name[3:].removesuffix(".md"),
        title[1],
        given["experiment"],
        _asked(body, "First guess"),
        _asked(body, "Exercise"),
        given["key"],
        body.strip() + "\n",
    )


def _asked(body: str, kind: str) -> str:
    """The paragraph that begins with `**KIND.**`, without the mark, as one line."""
    found = re.search(rf"^\*\*{kind}\.\*\* (.+?)\n\n", body, re.M | re.S)
    assert found is not None, f"a chapter has no paragraph '**{kind}.**'"
    return " ".join(found[1].split())


def chapter(number: int) -> Chapter:
    """The chapter of a number. Raises UsageError."""
    found = {one.number: one for one in chapters()}
    if number not in found:
        raise UsageError(f"tour: got chapter {number}, wanted one of 1 to {max(found)} (demeanor tour list)")
    return found[number]
