"""One JSON line per request: who asked which model, what it cost, who refused. No keys, no contents, nothing a client wrote.

The only thing of the client's in it is its x-request-id, where that is sane.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from demeanor.core.types import ToolDecision
from demeanor.server.request_context import Observer, RequestContext


def line_of(request: RequestContext, now: datetime) -> dict[str, Any]:
    """A finished request as a log line; milliseconds, tokens."""
    said: dict[str, Any] = {
        "time": stamp(now),
        "level": "error" if request.status >= 500 else "info",
        "event": "request",
        "request_id": request.request_id,
        "id": request.id,
        "method": request.method,
        "route": request.route,
        "status": request.status,
        "ms": round(1000 * (request.ended - request.started), 2),
    }
    if request.key is not None:
        said |= {"key": request.key.prefix, "user": request.key.name}
    if request.turns:
        said |= {
            "model": request.model,
            "stack_key": request.stack_key,
            "stream": request.streamed,
            "prompt_tokens": request.prompt_tokens,
            "cached_tokens": request.cached_tokens,
            "completion_tokens": request.completion_tokens,
            "layers_ms": {by: round(ms, 3) for by, ms in request.layers_ms.items()},
        }
        if request.first_token is not None:
            said["first_token_ms"] = round(1000 * (request.first_token - request.started), 2)
    if request.costs:
        said["cost_usd"] = request.cost_usd
    if request.upstreams:
        said["upstreams"] = [
            {
                "name": u.name,
                "failed": [{"name": name, "status": status} for name, status in u.tried],
                "skipped": list(u.skipped),
            }
            for u in request.upstreams
        ]
    if request.refusals:
        said["refusals"] = [{"by": by, "rule": rule} for by, rule in request.refusals]
    if request.rule_hits:
        names = ("by", "rule", "stage", "outcome")
        said["rule_hits"] = [dict(zip(names, hit)) for hit in request.rule_hits]
    if request.tool_decisions:
        said["tools"] = [_decided(decision) for decision in request.tool_decisions]
    return said


UNKNOWN = ("offered", "withheld", "malformed", "budget_spent")
"""Verdicts whose names are many, or may be whatever a server or a model wrote."""


def _decided(decision: ToolDecision) -> dict[str, Any]:
    if decision.verdict in UNKNOWN:
        return {"verdict": decision.verdict, "count": len(decision.tools)}
    return {"verdict": decision.verdict, "tools": list(decision.tools)}


def to(stream: TextIO, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Observer:
    """An observer that writes each request to a stream."""

    def write(request: RequestContext) -> None:
        stream.write(json.dumps(line_of(request, now()), ensure_ascii=True) + "\n")
        stream.flush()

    return write


def one_line(text: str) -> str:
    """A text that can neither begin a line of its own nor steer a terminal: everything unprintable is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


class TextLines(logging.Formatter):
    """Everything the process logs, as text: one line a record; the lines of a traceback are indented."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [f"{record.levelname}: {one_line(record.getMessage())}"]
        if record.exc_info:
            lines += [f"  {one_line(line)}" for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


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
