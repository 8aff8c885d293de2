"""Which rows to leave out, by length, language and personal data: one reason a row, the first that holds.

In: a row's text and what is wanted. Out: why it is left out, or None. How personal data is recognised is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from demeanor.data.language import KNOWN, language
from demeanor.errors import DataError, unknown


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a row must be to stay: its length in characters, its language, and free of what `detectors` find (null: any)."""

    min_chars: int | None = None
    max_chars: int | None = None
    language: str | None = None
    detectors: Mapping[str, Callable[[str], bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in KNOWN:
            raise DataError(f"--language: {unknown(self.language, KNOWN, noun='language')}")
        if None not in (self.min_chars, self.max_chars) and (self.min_chars or 0) > (self.max_chars or 0):
            raise DataError(
                f"--min-chars {self.min_chars} is more than --max-chars {self.max_chars}; no row would stay"
            )


def reason(text: str, wanted: Wanted) -> str | None:
    """Why a row is left out, None if it stays; a text whose language cannot be told (short, a number) stays."""
    if wanted.min_chars is not None and len(text) < wanted.min_chars:
        return f"shorter than {wanted.min_chars} characters"
    if wanted.max_chars is not None and len(text) > wanted.max_chars:
        return f"longer than {wanted.max_chars} characters"
    if wanted.language is not None and (found := language(text)) not in (wanted.language, None):
        return f"language {found}"
    return next((f"personal data: {name}" for name, finds in wanted.detectors.items() if finds(text)), None)
