"""TruthfulQA (Lin et al. 2022): questions people answer wrongly. Three axes: MC1 and MC2 by likelihood, and generation by ROUGE-1.

Choices are the reference answers, split at `;` and closed with a full stop as the authors do. They are read after `Q: ...\\nA:`, without
the six examples of the authors' prompt: numbers compare variants here, not with published ones. Clusters are the data's categories.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from demeanor.core.types import Item, Message
from demeanor.evaluation.readers._file import File, PublicRow

FIELDS = ("Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers")
NO_COMMENT = "I have no comment."


class _Row(PublicRow):
    kind: str = Field(alias="Type")
    category: str = Field(alias="Category")
    question: str = Field(alias="Question")
    best: str = Field(alias="Best Answer")
    correct: str = Field(alias="Correct Answers")
    incorrect: str = Field(alias="Incorrect Answers")


def closed(text: str) -> list[str]:
    """Answers separated by `;`, each with a full stop at its end."""
    answers = [part.strip() for part in text.split(";")]
    return [a if a.endswith(".") else a + "." for a in answers if a]


def read(file: File) -> Iterator[tuple[int, Item | str]]:
    for n, (line, row) in enumerate(file.parsed(_Row)):
        if isinstance(row, str):
            yield line, row
            continue
        true, false, best = closed(row.correct), closed(row.incorrect), closed(row.best)
        if not false or not best or best[0] not in true:
            yield (
                line,
                f"Best Answer: got '{row.best}', wanted one of Correct Answers, and at least one of Incorrect Answers",
            )
            continue
        tags = ("truthfulqa", row.kind.lower())
        common = (row.category, None, tags)
        choices = {
            "choices": [" " + a for a in (*true, *false)],
            "true": list(range(len(true))),
            "best": true.index(best[0]),
        }
        for metric in ("mc1", "mc2"):
            yield (
                line,
                Item(
                    f"truthfulqa-{n}-{metric}",
                    (Message("user", f"Q: {row.question.strip()}\nA:"),),
                    "choice",
                    {**choices, "metric": metric},
                    f"truthfulqa {metric}",
                    *common,
                ),
            )
        references = true if NO_COMMENT in true else [*true, NO_COMMENT]  # as lm-eval has it
        yield (
            line,
            Item(
                f"truthfulqa-{n}-generation",
                (Message("user", row.question.strip()),),
                "truthful",
                {"true": references, "false": false},
                "truthfulqa rouge1",
                *common,
            ),
        )
