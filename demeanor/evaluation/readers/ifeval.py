"""IFEval (Zhou et al. 2023): prompts with verifiable instructions. Two axes on one generation: prompt level strict and loose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import AliasChoices, Field

from demeanor.core.types import Item, Message
from demeanor.evaluation.readers._file import File, PublicRow

FIELDS = ("key", "prompt", "instruction_id_list", "kwargs")


class _Row(PublicRow):
    key: int
    prompt: str
    instruction_id_list: tuple[str, ...]
    given: tuple[dict[str, Any], ...] = Field(validation_alias=AliasChoices("kwargs"))


def read(file: File) -> Iterator[tuple[int, Item | str]]:
    for line, row in file.parsed(_Row):
        if isinstance(row, str):
            yield line, row
        elif len(row.given) != len(row.instruction_id_list):
            yield (
                line,
                f"kwargs: got {len(row.given)}, wanted one for each of {len(row.instruction_id_list)} instructions",
            )
        else:
            # the copy on the hub has all keys, most of them null
            wanted = [
                {"id": i, "settings": {k: v for k, v in one.items() if v is not None}}
                for i, one in zip(row.instruction_id_list, row.given, strict=True)
            ]
            for mode in ("strict", "loose"):
                target = {"instructions": wanted, "mode": mode}
                yield (
                    line,
                    Item(
                        f"ifeval-{row.key}-{mode}",
                        (Message("user", row.prompt),),
                        "ifeval",
                        target,
                        f"ifeval {mode}",
                        f"ifeval-{row.key}",
                        tags=("ifeval",),
                    ),
                )
