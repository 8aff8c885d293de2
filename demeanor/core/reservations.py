"""What a store of limits promises: requests and tokens of a user's last minute, and requests in progress.

In: who asks and how many tokens may be used. Out: a reservation that is settled once, or LimitExceeded. Stores: in
memory (layers/limits.py) and in Redis, for several processes (store/redis_limits.py); both give the same answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

WINDOW_S = 60.0
BUSY_S = 1.0  # advised wait if only turns in progress are in the way: their end is unknown
What: TypeAlias = Literal["requests", "tokens", "in_progress", "size"]
# Takes the used tokens (None: all that were reserved) and the time; only the first call counts. It is under way when
# the call returns; awaiting the result waits until it counts everywhere.
Settle: TypeAlias = Callable[[int | None, float], Awaitable[None]]


class LimitExceeded(Exception):
    """A limit is reached: which one, how many tokens were wanted, and the seconds until there is room."""

    def __init__(self, what: What, wanted: int, retry_after_s: float = 0.0) -> None:
        super().__init__(what)
        self.what, self.wanted, self.retry_after_s = what, wanted, retry_after_s


class Settled:
    """What awaiting a settlement in memory waits for: nothing."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


@dataclass(frozen=True, slots=True)
class Maxima:
    """The most requests and tokens of a user in any 60 s, and requests of all in progress; None is no limit."""

    requests: int | None = None
    tokens: int | None = None
    in_progress: int | None = None


class Reservations(Protocol):
    """Counts requests and tokens under `Maxima`."""

    async def reserve(self, user: str, tokens: int, now: float) -> Settle:
        """Count a request and reserve its tokens, or raise LimitExceeded; atomic."""
        ...
