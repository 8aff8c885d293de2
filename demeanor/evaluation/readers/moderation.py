"""OpenAI's moderation set (Markov et al. 2023): prompts that people flagged in 8 categories; whether the policy stops them.

A prompt is flagged if any category has 1. Labels that are missing count as not flagged, and the item says so with a tag. Every prompt is
its own cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from demeanor.core.types import Item, Message
from demeanor.evaluation.readers._file import File, PublicRow

FIELDS = ("prompt",)
CATEGORIES = {
    "S": "sexual",
    "H": "hate",
    "V": "violence",
    "HR": "harassment",
    "SH": "self-harm",
    "S3": "sexual/minors",
    "H2": "hate/threatening",
    "V2": "violence/graphic",
}
Label = Literal[0, 1] | None


class _Row(PublicRow):
    prompt: str
    S: Label = None
    H: Label = None
    V: Label = None
    HR: Label = None
    SH: Label = None
    S3: Label = None
    H2: Label = None
    V2: Label = None


def recognises(row: Mapping[str, Any]) -> bool:
    return "prompt" in row and bool(set(row) & set(CATEGORIES)) and set(row) <= {"prompt", *CATEGORIES}


def read(file: File) -> Iterator[tuple[int, Item | str]]:
    for n, (line, row) in enumerate(file.parsed(_Row)):
        if isinstance(row, str):
            yield line, row
            continue
        labels = {name: getattr(row, short) for short, name in CATEGORIES.items()}
        named = [name for name, value in labels.items() if value == 1]
        tags = ("moderation", *named, *(["partly-labelled"] if None in labels.values() else []))
        target, axis = (
            {"flagged": bool(named), "categories": named},
            f"moderation {'flagged' if named else 'clean'}",
        )
        name = f"moderation-{file.stem}-{n}"
        yield line, Item(name, (Message("user", row.prompt),), "flagged", target, axis, name, tags=tags)
