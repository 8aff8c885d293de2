"""What lies in the folder of runs: each run's state, size and last numbers; and the way a run that nobody needs goes.

In: the folder. Out: one Entry per run, newest first. It refuses to know stacks: which keys are needed it is told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from demeanor.errors import DemeanorError
from demeanor.train import ledger
from demeanor.train.lineage import CHECKPOINT, LEDGER, LOCK, MODEL, RECORD, is_held, lock

KEY = re.compile(r"[0-9a-f]{16}")
"""Names of run folders (`stack.digest`); whatever else lies there (references, a person's files) is none and is left alone."""
GONE = ".deleted-"


@dataclass(frozen=True, slots=True)
class Entry:
    """One run: `state` in words, size in bytes of all its files, the last session's begin (ISO), the last loss and held-out loss."""

    key: str
    stack: str
    stage: str
    state: str
    size: int
    began: str
    loss: float | None
    held_out: float | None

    @property
    def busy(self) -> bool:
        return self.state == "running"


def entries(root: Path) -> list[Entry]:
    """Every run in a folder, the last begun first; empty where there is no folder."""
    found = (
        [entry(folder) for folder in sorted(root.iterdir()) if folder.is_dir() and KEY.fullmatch(folder.name)]
        if root.is_dir()
        else []
    )
    return sorted(found, key=lambda x: x.began, reverse=True)


def entry(folder: Path) -> Entry:
    """One run, as its files say; whatever cannot be read makes it broken and is never an error."""
    record, trouble = _record(folder / RECORD)
    loss = held_out = None
    try:
        for row in ledger.read(folder / LEDGER):
            loss, held_out = row.get("loss", loss), row.get("eval_loss", held_out)
    except DemeanorError as error:
        trouble = trouble or f"broken: {error}"
    sessions = record.get("sessions") or [{}]
    return Entry(
        folder.name,
        str(record.get("stack", "?")),
        str(record.get("stage", "?")),
        _state(folder, trouble),
        _size(folder),
        str(sessions[-1].get("began", "")),
        loss,
        held_out,
    )


def _record(path: Path) -> tuple[dict[str, Any], str | None]:
    try:
        record = json.loads(path.read_text())
        return (record, None) if isinstance(record, dict) else ({}, f"broken: {path.name} is no record")
    except FileNotFoundError:
        return {}, f"broken: no {path.name}"
    except (OSError, ValueError) as error:
        return {}, f"broken: {path.name}: {error}"


def _state(folder: Path, trouble: str | None) -> str:
    if is_held(folder / LOCK):
        return "running"
    if (folder / MODEL).is_dir():
        return trouble or "finished"
    if trouble or not (folder / CHECKPOINT).exists():
        return trouble or "interrupted before its first checkpoint"
    try:
        with safe_open(folder / CHECKPOINT, "np") as file:
            saved = json.loads((file.metadata() or {})["demeanor"])
        return f"interrupted at step {saved['step']} of {saved['about']['steps']}"
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        return f"broken: {CHECKPOINT}: {error}"


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() or path.is_symlink() else 0
        except FileNotFoundError:  # a run that goes on replaces its files
            continue
    return total


def began(found: Entry) -> str:
    """When, to the minute, in UTC as it was written; empty if the record does not say."""
    try:
        return datetime.fromisoformat(found.began).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ""


def unneeded(found: Collection[Entry], needed: Collection[str]) -> list[Entry]:
    """The runs whose key nobody needs and nobody holds."""
    return [x for x in found if x.key not in needed and not x.busy]


def delete(root: Path, key: str) -> None:
    """Delete a run: it loses its name in one rename, so that nobody finds half of it. Raises DemeanorError if somebody holds it."""
    held = lock(root / key / LOCK)
    try:
        gone = root / f"{GONE}{key}-{os.getpid()}"
        os.replace(root / key, gone)
        shutil.rmtree(gone)
    finally:
        held.close()


def sweep(root: Path) -> None:
    """Finish what a killed `delete` left."""
    for gone in root.glob(f"{GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)
