"""Turns and events as JSON and back, so that a stored turn can be replayed.

In: turns and events. Out: JSON text, and the objects again. Neighbouring Texts of one layer are stored as
one. Knows no database.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import TypeAdapter

from demeanor.core import types
from demeanor.core.types import Event, Text, Turn

EVENTS: dict[str, TypeAdapter[Event]] = {cls.__name__: TypeAdapter(cls) for cls in get_args(types.Event)}
_TURN = TypeAdapter(Turn)
_SURROGATE = re.compile("[\ud800-\udfff]")


def turn_json(turn: Turn) -> str:
    """Return a turn as ASCII JSON."""
    return _json(turn)


def turn_of(text: str) -> Turn:
    """Parse what `turn_json` wrote."""
    return _TURN.validate_python(json.loads(text))


def event_rows(events: Sequence[Any]) -> list[tuple[str, str, str]]:
    """Return events as (kind, by, JSON), with neighbouring Texts of one layer joined."""
    joined: list[Any] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, Text) and isinstance(last, Text) and last.by == event.by:
            joined[-1] = Text(last.text + event.text, event.by, last.logprobs + event.logprobs)
        else:
            joined.append(event)
    return [(type(e).__name__, storable(str(getattr(e, "by", ""))), _json(e)) for e in joined]


def event_of(kind: str, text: str) -> Event | None:
    """Parse the event stored under `kind`; None for an unknown kind."""
    adapter = EVENTS.get(kind)
    return None if adapter is None else adapter.validate_python(json.loads(text))


def storable(text: str) -> str:
    """Return text that SQLite can store: lone surrogates become U+FFFD."""
    return _SURROGATE.sub("\ufffd", text)


def _json(value: Any) -> str:
    is_object = dataclasses.is_dataclass(value) and not isinstance(value, type)
    plain = dataclasses.asdict(value) if is_object else repr(value)
    return json.dumps(plain, default=str)
