"""A reader's tour on disk: guesses, results and answers below results/tour/, and experiments as processes of their own.

In: chapters, a Lab. Out: files that survive kill -9, and what a page or the terminal says of them.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demeanor.core import hardware
from demeanor.core.errors import UsageError
from demeanor.core.files import write_json, write_text
from demeanor.tour import drawing, findings, trials
from demeanor.tour.chapters import Chapter, chapters
from demeanor.tour.findings import Findings
from demeanor.tour.lab import Lab

NOTES = "reader.json"


@dataclass
class Notebook:
    """What one reader guessed and answered, in FOLDER/reader.json."""

    folder: Path

    def notes(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / NOTES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def note(self, chapter: Chapter, **values: Any) -> None:
        """Keep a guess or an answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        notes = self.notes()
        notes[chapter.slug] = {**notes.get(chapter.slug, {}), **values}
        write_json(self.folder / NOTES, notes)

    def found(self, chapter: Chapter) -> Findings | None:
        """The result of the reader's own run; None before it."""
        path = self.folder / f"{chapter.experiment}.json"
        return findings.load(path) if path.is_file() else None

    def check(self, chapter: Chapter, given: float) -> tuple[bool, str]:
        """Is the answer of the exercise right, by the reader's own run? Raises UsageError before it."""
        found = self.found(chapter)
        if found is None:
            raise UsageError(f"chapter {chapter.number}: run its experiment first: {chapter.command}")
        right, why = findings.verdict(given, found.answers[chapter.key])
        self.note(chapter, answer=given, right=right)
        return right, why


def number(text: str) -> float:
    """A guess or an answer as people write and copy it: 84, +84, −33, 84 %, 33,5. Raises UsageError."""
    plain = text.replace("−", "-").replace(",", ".").strip(" %\n")
    try:
        found = float(plain)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"got '{text}', wanted a number, such as 84 or -33")
    return found


def make(chapter: Chapter, lab: Lab) -> Findings:
    """Make a chapter's experiment; write its result and its picture."""
    found = trials.run(chapter.experiment, lab)
    write_text(lab.folder / f"{chapter.experiment}.svg", drawing.draw(found))
    findings.save(found, lab.folder)
    return found


@dataclass
class Processes:
    """The experiments that pages have begun, one at a time; each is `demeanor tour run N` with a log in the folder."""

    folder: Path
    options: Sequence[str]
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, chapter: Chapter) -> None:
        """Begin a chapter's experiment. Raises UsageError while one runs."""
        busy = [n for n in self._running if self.state(n) == "running"]
        if busy:
            raise UsageError(f"chapter {busy[0]} is still running; one experiment runs at a time")
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "demeanor", "tour", "run", str(chapter.number), *self.options]
        with self.log(chapter.number).open("wb") as log, hardware.unbound():
            self._running[chapter.number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def state(self, number: int) -> str:
        """`idle`, `running`, `done` or `failed`."""
        process = self._running.get(number)
        if process is None:
            return "idle"
        code = process.poll()
        return "running" if code is None else "done" if code == 0 else "failed"

    def log(self, number: int) -> Path:
        return self.folder / f"chapter-{number}.log"

    def said(self, number: int, lines: int = 6) -> str:
        """The last lines that an experiment printed."""
        try:
            text = self.log(number).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.replace("\r", "\n").splitlines()[-lines:])

    def close(self) -> None:
        """Stop what still runs; a result is written whole or not at all."""
        for process in self._running.values():
            if process.poll() is None:
                process.terminate()
                process.wait(10)


def progress(reader: Notebook) -> list[tuple[Chapter, str]]:
    """Every chapter with what the reader has done of it."""
    notes = reader.notes()
    told = []
    for chapter in chapters():
        mine = notes.get(chapter.slug, {})
        done = "run" if (reader.folder / f"{chapter.experiment}.json").is_file() else ""
        answered = "" if "right" not in mine else "answered" if mine["right"] else "answered, not yet right"
        told.append((chapter, ", ".join(x for x in (done, answered) if x) or "not begun"))
    return told
