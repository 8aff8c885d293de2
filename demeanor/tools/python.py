"""The python tool: runs a part of Python in pydantic-monty, an interpreter in a process of its own.

In: code. Out: what it printed, then the value of its last expression. It has no files, network, environment or clock beyond the time
of day, and nothing stays between two calls. Time, memory, depth and output are bounded; a worker that does not stop is killed.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from typing import Any

from demeanor.core.errors import DemeanorError
from demeanor.core.types import ToolSpec

RUN_S = 2.0  # of running code
KILL_S = 3.0  # of a call, after which its worker is killed
MAX_BYTES = 64 << 20  # of the code's memory
MAX_CODE, MAX_OUTPUT = 20_000, 10_000  # characters; bytes
WORKERS = 4  # processes at once; further calls wait

SPEC = ToolSpec(
    "python",
    "Runs Python code and returns what it prints and the value of its last expression. It has re, math, json and datetime, but no "
    "files, no network and no packages; nothing is kept between calls.",
    {
        "type": "object",
        "properties": {"code": {"type": "string", "minLength": 1, "maxLength": MAX_CODE}},
        "required": ["code"],
        "additionalProperties": False,
    },
)
PURE = True
MISSING = "the tool 'python' needs pydantic-monty, which is not installed. Run: pip install 'demeanor[sandbox]', or take it out of `allow`"
LIMITS = {
    "max_feed_duration_secs": RUN_S,
    "max_memory": MAX_BYTES,
    "max_recursion_depth": 500,
    "max_suspensions": 100,
    "max_total_sleep_secs": 0.0,
}
_lock = threading.Lock()
_pool: Any = None


def missing() -> str:
    """Why the tool cannot be used here; empty if it can."""
    try:
        import pydantic_monty  # noqa: F401
    except ImportError:
        return MISSING
    return ""


def run(arguments: Mapping[str, Any]) -> str:
    """Run arguments["code"]; raises ValueError with the output so far and the error if it fails or goes beyond a limit."""
    try:
        import pydantic_monty as monty
    except ImportError:
        raise DemeanorError(MISSING) from None
    printed = _Printed()
    try:
        with _workers(monty).checkout(limits=LIMITS, print_flush_interval=0) as session:
            value = session.feed_run(arguments["code"], print_callback=printed)
    except monty.MontyCrashedError as error:
        why = f"stopped after {KILL_S:g} s" if error.timed_out else "the interpreter crashed"
        raise ValueError(printed.then(why)) from None
    except monty.MontyError as error:
        why = f"more than {MAX_OUTPUT} characters were printed" if printed.is_full else str(error)
        raise ValueError(printed.then(why)) from None
    except TimeoutError:
        raise ValueError("all interpreters are busy; try again") from None
    return printed.then("" if value is None else _shown(value))


def _workers(monty: Any) -> Any:
    """The pool of worker processes, started by the first call."""
    global _pool
    with _lock:
        if _pool is None:
            made = monty.Monty(
                min_processes=0, max_processes=WORKERS, checkout_timeout=KILL_S, request_timeout=KILL_S
            )
            _pool = made.__enter__()
            atexit.register(made.__exit__, None, None, None)
        return _pool


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return (
        text if len(text) <= MAX_OUTPUT else f"{text[:MAX_OUTPUT]} [{len(text) - MAX_OUTPUT} more characters]"
    )


class _FullError(Exception):
    """Enough was printed."""


class _Printed:
    """What code prints, up to a limit; printing beyond it ends the code."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._left = MAX_OUTPUT
        self.is_full = False

    def __call__(self, stream: str, text: str) -> None:
        self._parts.append(text[: self._left])
        self._left -= len(text)
        if self._left < 0:
            self.is_full = True
            raise _FullError

    def then(self, end: str) -> str:
        """The output and, on a line of its own, an end."""
        text = "".join(self._parts)
        return "\n".join(part for part in (text.rstrip("\n"), end) if part)
