"""Where the words of a call come from: text without authority (passages, tool results), or people.

In: a call and the conversation before it. Out: whether words of others decide the call. Time is linear in the texts.
A decision that copies no words is seen by `untrusted_context` only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from demeanor.core.long_text import Folded
from demeanor.core.types import Messages, ToolCall, Trust

WORD = re.compile(r"\w+(?:[.@:/+-]+\w+)*")  # an address or a number with its marks is one word
MOST = 5  # words of a passage in a row that count as copied
SHORT = 3  # characters of a single word that says nothing about its origin


def untrusted_arguments(call: ToolCall, messages: Messages) -> bool:
    """Whether a value of the call's arguments is copied from text without authority and said by no person.

    A value of up to five words counts as a whole, a longer one if any five words in a row are copied.
    """
    others = [m.content for m in messages if m.role in ("data", "tool") and m.authority == Trust.NONE]
    if not others:
        return False
    known = [m.content for m in messages if m.authority > Trust.NONE]
    values = [words for value in _values(call.arguments) if (words := _words(value)) and _says(words)]
    for count in sorted({min(len(words), MOST) for words in values}):
        theirs, ours = _runs(others, count), _runs(known, count)
        copied = theirs - ours
        if any(not copied.isdisjoint(_of(w, count)) for w in values if min(len(w), MOST) == count):
            return True
    return False


def untrusted_context(call: ToolCall, messages: Messages) -> bool:
    """Whether the model had read text without authority when it made the call."""
    return any(m.role in ("data", "tool") and m.authority == Trust.NONE and m.content for m in messages)


DETECTORS: Mapping[str, Callable[[ToolCall, Messages], bool]] = {
    "untrusted_arguments": untrusted_arguments,
    "untrusted_context": untrusted_context,
}


def _says(words: tuple[str, ...]) -> bool:
    return len(words) > 1 or len(words[0]) >= SHORT


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in WORD.findall(Folded(text).text))


def _runs(texts: list[str], count: int) -> set[tuple[str, ...]]:
    return {run for text in texts for run in _of(_words(text), count)}


def _of(words: tuple[str, ...], count: int) -> Iterator[tuple[str, ...]]:
    return (words[i : i + count] for i in range(len(words) - count + 1))


def _values(arguments: str) -> Iterator[str]:
    """Yield the values of a call's arguments (not the names, which the tool's schema gives), or the text if it is no JSON."""
    try:
        left: list[Any] = [json.loads(arguments)]
    except (ValueError, RecursionError):
        yield arguments
        return
    while left:
        item = left.pop()
        if isinstance(item, Mapping):
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif item is not None and not isinstance(item, bool):
            yield str(item)
