"""A token budget for all that the model reads: what is left out, in a stated order, when a prompt is too long.

In: the parts of a prompt and a count. Out: the messages that fit, and an event for everything left out. First examples go,
the least similar one first, then the oldest turns of the conversation. System and developer messages, passages and
the last question stay: if they alone do not fit, the request is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile

from demeanor.core.errors import RequestError
from demeanor.core.types import LeftOut, Messages

Count = Callable[[Messages], int]


@dataclass(frozen=True, slots=True)
class Parts:
    """A prompt in parts: ours, the caller's leading instructions, examples, earlier turns, and the last question with its
    passages and whatever followed it."""

    system: Messages
    leading: Messages
    examples: tuple[Messages, ...]
    history: tuple[Messages, ...]
    question: Messages

    def messages(self, examples: int = 0, turns: int = 0) -> Messages:
        """Return the prompt without so many of its first examples and turns."""
        shown = [m for pair in self.examples[examples:] for m in pair]
        past = [m for turn in self.history[turns:] for m in turn]
        return (*self.system, *self.leading, *shown, *past, *self.question)


def parts_of(messages: Messages, system: Messages, examples: Sequence[Messages]) -> Parts:
    """Return the parts of a conversation; a turn begins with a user message."""
    leading = tuple(takewhile(lambda m: m.role in ("system", "developer"), messages))
    rest = messages[len(leading) :]
    users = [i for i, m in enumerate(rest) if m.role == "user"]
    last = users[-1] if users else 0
    while last and rest[last - 1].role == "data":  # the passages of the last question
        last -= 1
    bounds = sorted({0, *(i for i in users if i < last), last})
    turns = tuple(tuple(rest[a:b]) for a, b in pairwise(bounds))
    return Parts(system, leading, tuple(examples), turns, tuple(rest[last:]))


def fitted(parts: Parts, most: int, count: Count) -> tuple[Messages, tuple[Messages, ...], list[LeftOut]]:
    """Return the messages that fit into `most` tokens, the examples among them, and what was left out.

    Raises RequestError (400) if nothing more may be left out.
    """
    fewest = _fewest(len(parts.examples), lambda n: count(parts.messages(n)) <= most)
    turns = 0
    if fewest is None:
        fewest = len(parts.examples)
        kept = _fewest(len(parts.history), lambda n: count(parts.messages(fewest or 0, n)) <= most)
        if kept is None:
            needed = count(parts.messages(fewest, len(parts.history)))
            raise RequestError(
                f"messages: the system prompt, the passages and the last question take {needed} tokens, more than the "
                f"{most} that a prompt of this model may have.",
                param="messages",
                code="context_length_exceeded",
            )
        turns = kept
    told = []
    if fewest:
        gone = sum(map(len, parts.examples[:fewest]))
        reason = f"{fewest} of {len(parts.examples)} examples do not fit into {most} tokens"
        told.append(LeftOut("max_tokens", reason, gone, by="prompt"))
    if turns:
        gone = sum(map(len, parts.history[:turns]))
        reason = f"the {turns} oldest of {len(parts.history)} earlier turns do not fit into {most} tokens"
        told.append(LeftOut("max_tokens", reason, gone, by="prompt"))
    return parts.messages(fewest, turns), parts.examples[fewest:], told


def _fewest(most: int, fits: Callable[[int], bool]) -> int | None:
    """Return the smallest n from 0 to `most` for which a prompt fits (fewer messages are fewer tokens), or None."""
    if fits(0):
        return 0
    if not fits(most):
        return None
    low, high = 0, most  # does not fit, fits
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
