"""Words of an answer, as every scorer compares them: lower case, without punctuation around them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words(text: str) -> list[str]:
    """The words of a text in order, lower-cased."""
    return [w.replace("’", "'") for w in _WORD.findall(text.lower())]


def contains(text: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether `wanted` stands in `text` as whole words in a row."""
    return bool(wanted) and any(
        list(text[i : i + len(wanted)]) == list(wanted) for i in range(len(text) - len(wanted) + 1)
    )
