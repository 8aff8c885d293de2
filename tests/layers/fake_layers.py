"""Fakes for layers: a clock that stands still unless told, a kit without anything behind it, scripted inner answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demeanor.core.types import Decoding, Done, Event, Message, Respond, Text, Turn, Usage
from demeanor.layers import Kit

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Clock:
    """Seconds that pass only when `now_s` is moved."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def kit(root: Path = Path("."), clock: Clock | None = None, **given: Any) -> Kit:
    """A kit that counts a word as a token and finds nothing."""
    standard: dict[str, Any] = {
        "root": root,
        "clock": clock or Clock(),
        "now": lambda: NOON,
        "tools": {},
        "count_tokens": lambda messages, tools: sum(len(m.content.split()) for m in messages) + len(tools),
        "open_index": lambda folder, search: lambda query, k: [],
        "rank_texts": lambda texts, select: lambda question: list(range(len(texts))),
        "open_store": lambda url: None,
    }
    return Kit(**(standard | given))


def ask(text: str = "When does the ferry leave?", max_tokens: int = 100, **given: Any) -> Turn:
    return Turn((Message("user", text),), Decoding(max_tokens=max_tokens), **given)


def says(*pieces: str, usage: bool = True) -> Respond:
    """An inner answer in pieces."""
    return script([*map(Text, pieces), *([Usage(5, len(pieces))] if usage else []), Done("stop")])


def script(*rounds: Sequence[Event], seen: list[Turn] | None = None) -> Respond:
    """Answers with the given events: the n-th call with the n-th list (the last one for ever); `seen` collects the turns."""
    calls = seen if seen is not None else []

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        calls.append(turn)
        for event in rounds[min(len(calls), len(rounds)) - 1]:
            await asyncio.sleep(0)
            yield event

    return respond


async def events_of(respond: Respond, turn: Turn | None = None) -> list[Event]:
    return [event async for event in respond(turn or ask())]


def only(events: Sequence[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def text_of(events: Sequence[Event]) -> str:
    return "".join(e.text for e in only(events, Text))
