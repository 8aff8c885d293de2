"""How many requests at once another server is asked: few at first, more while answers begin soon, fewer when they begin late.

An evaluation has hundreds of questions, and the server may answer one at a time: then a question waits for those before it,
and would be given up as silent. In: a Respond of that server and how long it may be silent. Out: the same answers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable

from demeanor.core.errors import UpstreamError
from demeanor.core.types import Event, Respond, Turn

FIRST, MOST = 4, 48
SOON, LATE = 0.1, 0.25
"""Shares of the longest silence: an answer that begins before the first adds a request, one after the second removes a third."""
TRIES = 6


class AdaptiveConcurrency:
    """The places for requests to one server; `width` of them may be taken at once."""

    def __init__(
        self,
        patience_s: float,
        *,
        first: int = FIRST,
        most: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.patience_s, self.most, self.clock = patience_s, most, clock
        self.width = float(min(first, most))
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._changed = -1.0
        self._dead = False

    async def take(self) -> None:
        """Wait for a place."""
        while self.taken >= int(self.width):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place in self._waiting:
                    self._waiting.remove(place)
                self._wake()
                raise
        self.taken += 1

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1
        self._wake()

    def _wake(self) -> None:
        for _ in range(min(len(self._waiting), int(self.width) - self.taken)):
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)

    def begun(self, asked: float) -> None:
        """Learn that an answer to a request of that time (s) begins now."""
        self._dead = False
        waited_s = self.clock() - asked
        if waited_s < SOON * self.patience_s:
            self.width = min(self.most, self.width + 1)
        elif waited_s > LATE * self.patience_s and asked >= self._changed:
            self._narrow(self.width * 2 / 3)
        self._wake()

    def silent(self, asked: float) -> bool:
        """Learn that a request of that time got no answer; return whether asking again with fewer at once may help."""
        if self._dead:
            return False
        if self.width <= 1 and asked >= self._changed:  # nothing stood before it
            self._dead, self.width = True, float(self.most)
            self._wake()
            return False
        if asked >= self._changed:
            self._narrow(self.width / 2)
        return True

    def _narrow(self, width: float) -> None:
        self.width, self._changed = max(1.0, width), self.clock()


def paced(inner: Respond, places: AdaptiveConcurrency) -> Respond:
    """The same answers, asked for as the server keeps up; one that did not begin in time is asked for again with fewer others."""

    async def respond(turn: Turn) -> AsyncGenerator[Event, None]:
        for tried in range(1, TRIES + 1):
            await places.take()
            asked, begun, events = places.clock(), False, inner(turn)
            try:
                async for event in events:
                    if not begun:
                        begun = True
                        places.begun(asked)
                    yield event
                return
            except UpstreamError as error:
                late = error.code == "upstream_timeout" and not begun
                if not late or not places.silent(asked) or tried == TRIES:
                    raise
            finally:
                if isinstance(events, AsyncGenerator):
                    await events.aclose()
                places.leave()

    return respond
