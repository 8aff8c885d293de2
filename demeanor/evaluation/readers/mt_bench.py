"""MT-Bench (Zheng et al. 2023): two-turn questions. Both turns are asked; a judge rates both answers at once."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from demeanor.core.types import Item, Message
from demeanor.evaluation.readers._file import File, PublicRow

FIELDS = ("question_id", "category", "turns")


class _Row(PublicRow):
    question_id: int
    category: str
    turns: tuple[str, ...] = Field(min_length=1)
    reference: tuple[str, ...] = ()


def read(file: File) -> Iterator[tuple[int, Item | str]]:
    for line, row in file.parsed(_Row):
        if isinstance(row, str):
            yield line, row
            continue
        target = {
            "question": f"How good are these answers, from 1 to 10 ({row.category})?",
            "reference": list(row.reference),
            "turns": list(row.turns[1:]),
            "scale": "rating",
        }
        yield (
            line,
            Item(
                f"mt-bench-{row.question_id}",
                (Message("user", row.turns[0]),),
                "judged",
                target,
                "mt-bench",
                row.category,
                tags=("mt-bench",),
            ),
        )
