"""Answers given before as drafts of those to come: another variant of the same weights is often answered word for word alike.

In: what was asked last, and what was said. Out: drafts for the engine, which checks many tokens at a time and says nothing that it
would not have said without them. It counts the answers that an earlier one had word for word.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from demeanor.core.types import Messages

MOST = 4
"""Drafts kept per question, the newest first; more are seldom right and cost a comparison each."""
ASKING = ("user", "tool")


@dataclass
class Drafts:
    """What weights have said to each question, whatever stood before it."""

    confirmed: int = 0
    """Answers that a draft had word for word."""
    _said: dict[Hashable, list[tuple[int, ...]]] = field(default_factory=dict)

    def of(self, topic: Hashable) -> tuple[tuple[int, ...], ...]:
        """Answers to try, the newest first."""
        return tuple(self._said.get(topic, ()))

    def keep(self, topic: Hashable, said: Sequence[int], tried: Sequence[tuple[int, ...]]) -> None:
        """Remember an answer; `tried` are the drafts that it was given."""
        answer = tuple(said)
        self.confirmed += answer in tried
        known = self._said.setdefault(topic, [])
        if answer in known:
            known.remove(answer)
        self._said[topic] = [answer, *known][:MOST]


def topic(weights: str, messages: Messages) -> Hashable:
    """What was asked last, and of whom: the system prompt, passages and examples around it do not count."""
    last = next((m for m in reversed(messages) if m.role in ASKING), None)
    return weights, last and (last.role, last.content)
