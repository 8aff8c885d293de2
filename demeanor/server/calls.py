"""One HTTP request while it is answered: who asks, what it may take, what it has done so far.

The envelope makes a Call per request; whatever runs on behalf of the request finds it in CALL, tasks it starts included.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from dataclasses import dataclass, field

from demeanor.core.types import Event, Turn
from demeanor.server.spending import Purse
from demeanor.store.keys import Key

SANE_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")


@dataclass(eq=False)
class Call:
    """A request and its running account; times in seconds of one monotonic clock. `id` is ours and unique, `request_id` what is shown."""

    id: str
    request_id: str
    method: str = ""
    started: float = 0.0
    key: Key | None = None
    purse: Purse | None = None
    requests_left: tuple[int, float] | None = None
    """Requests the key has left in this minute, and after how many seconds there is one more."""
    route: str = "other"
    status: int = 0
    ended: float = 0.0
    model: str = ""
    stack_key: str = ""
    streamed: bool = False
    turns: int = 0
    layers_ms: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refusals: list[tuple[str, str]] = field(default_factory=list)
    first_token: float | None = None
    last_token: float | None = None
    trace: dict[str, str] = field(default_factory=dict)
    """The headers that say which trace of the caller's this belongs to."""
    said: list[tuple[Turn, list[Event]]] = field(default_factory=list)
    """The turns with their events, where contents are to be kept for the observers."""


CALL: ContextVar[Call | None] = ContextVar("demeanor_call", default=None)


def purse() -> Purse | None:
    """The purse of the request that is being answered, if there is one."""
    call = CALL.get()
    return None if call is None else call.purse


def shown_id(given: str | None, own: str) -> str:
    """The id a client chose, if it is one a log can hold; else our own."""
    return given if given and SANE_ID.fullmatch(given) else own
