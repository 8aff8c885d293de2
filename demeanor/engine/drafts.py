"""Earlier answers as drafts: variants of the same weights often give the same answer word for word.

In: the last question and the answers given to it. Out: drafts that the engine verifies many tokens at a time,
so they never change an answer. Counts the answers that equalled a draft.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from demeanor.core.types import Messages

MOST = 4  # drafts kept for each question, newest first; more are seldom right and cost a comparison each
ASKING = ("user", "tool")


@dataclass
class Drafts:
    """Answers that some weights have given to each question, independent of the context before it."""

    confirmed: int = 0  # answers that equalled one of their drafts
    _answers: dict[Hashable, list[tuple[int, ...]]] = field(default_factory=dict)

    def of(self, topic: Hashable) -> tuple[tuple[int, ...], ...]:
        """Return the drafts for a topic, newest first."""
        return tuple(self._answers.get(topic, ()))

    def keep(self, topic: Hashable, tokens: Sequence[int], tried: Sequence[tuple[int, ...]]) -> None:
        """Store an answer; `tried` are the drafts that it was generated with."""
        answer = tuple(tokens)
        self.confirmed += answer in tried
        earlier = [known for known in self._answers.get(topic, ()) if known != answer]
        self._answers[topic] = [answer, *earlier][:MOST]


def topic(weights: str, messages: Messages) -> Hashable:
    """Return the key of a question: weights and last user or tool message, without the context before it."""
    last = next((m for m in reversed(messages) if m.role in ASKING), None)
    return weights, last and (last.role, last.content)
