"""Recorded turns with what their users said of them: for the command line, exports, replays and the routing of complaints.

In: a TurnFilter. Out: whole turns with their feedback, newest first, read page by page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from demeanor.store import turn_search
from demeanor.store.database import Database, Feedback, Stored
from demeanor.store.turn_search import TurnFilter

PAGE = 200


@dataclass(frozen=True, slots=True)
class FoundTurn:
    """A recorded turn with its feedback, oldest first."""

    stored: Stored
    feedback: tuple[Feedback, ...]

    @property
    def rating(self) -> float | None:
        """The mean of the ratings; None without one."""
        values = [f.value for f in self.feedback]
        return sum(values) / len(values) if values else None

    @property
    def corrected(self) -> str | None:
        """The last corrected answer that a user gave."""
        return next((f.corrected for f in reversed(self.feedback) if f.corrected), None)

    @property
    def complained(self) -> bool:
        """Whether a user disliked the answer, or wrote another one."""
        other = self.corrected is not None and self.corrected.split() != self.stored.completion.text.split()
        return (self.rating or 0.0) < 0 or other


def select(
    database: Database, wanted: TurnFilter, *, limit: int | None = None, skip: int = 0
) -> list[FoundTurn]:
    """Return matching turns, newest first; words are compared without regard to case in every script."""
    return list(islice(_matches(database, wanted), skip, None if limit is None else skip + limit))


def _matches(database: Database, wanted: TurnFilter) -> Iterator[FoundTurn]:
    text, page = wanted.query, wanted
    if not text.isascii():  # the database folds the case of ASCII letters alone
        page = replace(page, query="")
    while rows := turn_search.search(database, page, limit=PAGE):
        for row in rows:
            stored = database.turn(row.id)
            if stored is not None and (not text or says(stored, text)):
                yield FoundTurn(stored, tuple(database.feedback(row.id)))
        page = replace(page, before=rows[-1].row)


def find(database: Database, which: str) -> FoundTurn | None:
    """Return the turn of that id."""
    stored = database.turn(which)
    return None if stored is None else FoundTurn(stored, tuple(database.feedback(which)))


def says(stored: Stored, text: str) -> bool:
    """Whether the words stand in a message of the conversation or in the answer, or are the turn's id."""
    wanted = text.casefold()
    said = [*(m.content for m in stored.turn.messages), stored.completion.text]
    return text == stored.turn.id or any(wanted in part.casefold() for part in said)
