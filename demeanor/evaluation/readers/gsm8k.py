"""GSM8K (Cobbe et al. 2021): grade-school mathematics, the gold number after ####. Asked without examples, in one user message.

Two axes on one generation: lm-eval's strict-match (also the authors' extraction, but for a last `.`) and its flexible-extract.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from demeanor.core.types import Item, Message
from demeanor.evaluation.readers._file import File, PublicRow

FIELDS = ("question", "answer")
ASK = "{question}\n\nWork it out step by step. Then write the answer alone on the last line, as: #### NUMBER"


class _Row(PublicRow):
    question: str
    answer: str


def recognises(row: Mapping[str, Any]) -> bool:
    return set(FIELDS) <= set(row) and "####" in str(row["answer"])


def read(file: File) -> Iterator[tuple[int, Item | str]]:
    for n, (line, row) in enumerate(file.parsed(_Row)):
        if isinstance(row, str):
            yield line, row
        elif "####" not in row.answer:
            yield line, "answer: got no '#### NUMBER' in it"
        else:
            gold = row.answer.rsplit("####", 1)[1].strip()
            asked = (Message("user", ASK.format(question=row.question)),)
            for axis in ("strict", "flexible"):
                yield (
                    line,
                    Item(
                        f"gsm8k-{file.stem}-{n}-{axis}",
                        asked,
                        "gsm8k",
                        {"answer": gold, "extract": axis},
                        f"gsm8k {axis}",
                        f"gsm8k-{file.stem}-{n}",
                        tags=("gsm8k",),
                    ),
                )
