"""How many requests at once another server is asked: few at first, more while answers begin soon, fewer when they begin late.

An evaluation has hundreds of questions, and the server may answer one at a time: then a question waits for those before it,
and would be given up as silent. A model that thinks first, or sends its answer in one piece, begins late though nothing stands
before it: only what is above that time counts. In: a Respond of that server and how long it may be silent. Out: the same answers.
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
"""Shares of the silence that is left above a question's own time: an answer that waits less than the first for others adds a
request (an eighth of the requests, if fewer than 8), one that waits longer than the second removes a third."""
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
        self._least_s, self._alone_s = patience_s, 0.0

    async def take(self) -> bool:
        """Wait for a place; return whether no other request is there."""
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
        return self.taken == 1

    def leave(self) -> None:
        """Give a place back."""
        self.taken -= 1
        self._wake()

    def _wake(self) -> None:
        for _ in range(min(len(self._waiting), int(self.width) - self.taken)):
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)

    def begun(self, asked: float, alone: bool) -> None:
        """Learn that an answer to a request of that time (s) begins now; `alone`: no other request was there then."""
        self._dead = False
        waited_s = self.clock() - asked
        own_s = self._own_s(waited_s, alone)
        left_s = max(0.0, self.patience_s - own_s)
        if waited_s - own_s <= SOON * left_s:
            self.width = min(self.most, self.width + min(1.0, self.width / 8))
        elif waited_s - own_s > LATE * left_s and asked >= self._changed:
            self._narrow(self.width * 2 / 3)
        self._wake()

    def _own_s(self, waited_s: float, alone: bool) -> float:
        """How long an answer takes to begin if nothing stands before it: the shortest time so far, or a recent long one of those alone."""
        self._least_s = min(self._least_s, waited_s)
        if alone:
            self._alone_s = max(waited_s, self._alone_s / 2)
        return max(self._least_s, self._alone_s)

    def silent(self, asked: float) -> bool:
        """Learn that a request of that time got no answer; return whether asking again with fewer at once may help."""
        if self._dead:
            return False
        if self.width < 2 and asked >= self._changed:  # nothing stood before it
            self._dead, self.width = True, float(self.most)
            self._wake()
            return False
        if asked >= self._changed:
            self._narrow(self.width / 2)
        return True

    def refused(self, asked: float) -> None:
        """Learn that the server takes no more requests for now (429)."""
        if asked >= self._changed:
            self._narrow(self.width / 2)

    def _narrow(self, width: float) -> None:
        self.width, self._changed = max(1.0, width), self.clock()


def paced(inner: Respond, places: AdaptiveConcurrency) -> Respond:
    """The same answers, asked for as the server keeps up; one that did not begin in time is asked for again with fewer others."""

    async def respond(turn: Turn) -> AsyncGenerator[Event, None]:
        for tried in range(1, TRIES + 1):
            alone = await places.take()
            asked, begun, events = places.clock(), False, inner(turn)
            try:
                async for event in events:
                    if not begun:
                        begun = True
                        places.begun(asked, alone)
                    yield event
                return
            except UpstreamError as error:
                if error.status == 429 and not begun:
                    places.refused(asked)
                late = error.code == "upstream_timeout" and not begun
                if not late or not places.silent(asked) or tried == TRIES:
                    raise
            finally:
                if isinstance(events, AsyncGenerator):
                    await events.aclose()
                places.leave()

    return respond
