"""One JSON line per request: who asked which model, what it cost, who refused. No keys, no contents, nothing a client wrote.

The only thing of the client's in it is its x-request-id, where that is sane.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from demeanor.server.calls import Call


def line_of(call: Call, now: datetime) -> dict[str, Any]:
    """A finished request as a log line; milliseconds, tokens."""
    said: dict[str, Any] = {
        "time": stamp(now),
        "level": "error" if call.status >= 500 else "info",
        "event": "request",
        "request_id": call.request_id,
        "id": call.id,
        "method": call.method,
        "route": call.route,
        "status": call.status,
        "ms": round(1000 * (call.ended - call.started), 2),
    }
    if call.key is not None:
        said |= {"key": call.key.prefix, "user": call.key.name}
    if call.turns:
        said |= {
            "model": call.model,
            "stack_key": call.stack_key,
            "stream": call.streamed,
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
            "layers_ms": {by: round(ms, 3) for by, ms in call.layers_ms.items()},
        }
        if call.first_token is not None:
            said["first_token_ms"] = round(1000 * (call.first_token - call.started), 2)
    if call.refusals:
        said["refusals"] = [{"by": by, "rule": rule} for by, rule in call.refusals]
    return said


def to(stream: TextIO, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Callable[[Call], None]:
    """An observer that writes each request to a stream."""

    def write(call: Call) -> None:
        stream.write(json.dumps(line_of(call, now()), ensure_ascii=True) + "\n")
        stream.flush()

    return write


class Lines(logging.Formatter):
    """Everything else the process logs, in the same shape."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": stamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "event": "log",
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said, ensure_ascii=True)


def stamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")
