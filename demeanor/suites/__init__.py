"""Suites in natural English that come with demeanor: one .jsonl file of items each; `builtin:NAME` means one in a stack file.

All written for this project. Every item has an answer that scores 1 and one that does not in tests/suites. It knows names and places only.
"""

from __future__ import annotations

from pathlib import Path

from demeanor.errors import DemeanorError, unknown

FOLDER = Path(__file__).parent
PREFIX = "builtin:"


def known() -> tuple[str, ...]:
    """The names of the suites, sorted."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.jsonl")))


def path(name: str) -> Path:
    """The file of a suite; raises DemeanorError with the nearest and all known names if there is none."""
    if name not in known():
        raise DemeanorError(f"{PREFIX}{unknown(name, known(), noun='suite')}")
    return FOLDER / f"{name}.jsonl"
