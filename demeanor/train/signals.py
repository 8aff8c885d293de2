"""Ctrl-C and SIGTERM as a wish the loop reads between two steps; a second one does not wait.

In: nothing. Out: a Stop. Handlers exist only inside the `with`, only in the main thread, and are restored after it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from demeanor.errors import DemeanorError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(DemeanorError):
    """Someone asked the run to stop; it did, and says how to go on. Exit code 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


@dataclass
class Stop:
    """Which signal asked to stop (None: nobody did)."""

    number: int | None = None

    @property
    def asked(self) -> bool:
        return self.number is not None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first wish, obey the second at once."""
        if self.number is not None:
            raise Interrupted(
                "stopped at once; run the same command again to resume from the last checkpoint", number
            )
        self.number = number

    def obeyed(self, done: int, steps: int) -> Interrupted:
        """The error to raise once the checkpoint of step `done` is written."""
        return Interrupted(
            f"stopped after step {done} of {steps}; run the same command again to resume from there",
            self.number or signal.SIGINT,
        )


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Collect SIGINT and SIGTERM into a Stop for the length of the block."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
