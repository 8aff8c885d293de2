"""Which trained runs read a file, and which were trained on those: where the words in a preference set went.

In: the folder of runs, hashes of files (`stack.file_hash`). Out: runs, those that read a file first, then their descendants.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from demeanor.training.runs import KEY, RECORD


@dataclass(frozen=True, slots=True)
class DerivedRun:
    """A run whose weights hold something of a file; `via` is the run below it that read the file, or None."""

    key: str
    stack: str
    stage: str
    folder: Path
    via: str | None


def derived_runs(root: Path, contents: Collection[str]) -> list[DerivedRun]:
    """Return the runs that read one of these files, and all runs that begin at their weights."""
    records = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(root.glob(f"*/{RECORD}"))
        if KEY.fullmatch(path.parent.name)
    }
    via: dict[str, str | None] = {
        key: None
        for key, record in records.items()
        if any(content in contents for content in (record.get("data") or {}).values())
    }
    going = True
    while going:
        further = {
            key: parent
            for key, record in records.items()
            if key not in via
            for parent in (record.get("ancestors") or {}).values()
            if parent in via
        }
        via |= further
        going = bool(further)
    return [
        DerivedRun(key, records[key].get("stack", "?"), records[key].get("stage", "?"), root / key, parent)
        for key, parent in via.items()
    ]
