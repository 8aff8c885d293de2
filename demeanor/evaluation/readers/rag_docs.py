"""Questions about a documentation with the right chunks (the cookbook's retrieval set): how well the stack's retrieval layer finds them.

A right chunk is named by its link: an index finds it where a passage's source, id or a word of its text is that link (docs/public-sets.md).
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from demeanor.core.types import Item, Message
from demeanor.evaluation.readers._file import File, PublicRow

FIELDS = ("id", "question", "correct_chunks", "correct_answer")


class _Row(PublicRow):
    id: str
    question: str
    correct_chunks: tuple[str, ...] = Field(min_length=1)
    correct_answer: str


def read(file: File) -> Iterator[tuple[int, Item | str]]:
    for line, row in file.parsed(_Row):
        if isinstance(row, str):
            yield line, row
            continue
        page = row.correct_chunks[0].split("#")[0]
        for measure in ("recall", "mrr"):
            target = {"gold": list(row.correct_chunks), "measure": measure, "reference": row.correct_answer}
            yield (
                line,
                Item(
                    f"rag-docs-{row.id}-{measure}",
                    (Message("user", row.question),),
                    "passages",
                    target,
                    f"rag-docs {measure}",
                    page,
                    tags=("rag-docs",),
                ),
            )
