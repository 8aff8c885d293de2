"""`serve`: the OpenAI-compatible API and the chat page, as one runs it for others ([serving.md](serving.md))."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demeanor.stack.stack import Stack


def add(verb: Callable[..., argparse.ArgumentParser], load: Callable[[argparse.Namespace], Stack]) -> None:
    """Add the verb; `verb` makes a parser with the common options, `load` reads the stack."""

    def run(options: argparse.Namespace) -> int:
        from demeanor import serving
        from demeanor.server import serve
        from demeanor.train.runs import Runs

        settings = serve.Settings(
            host=options.host,
            port=options.port,
            api_keys=options.api_key,
            keys=options.keys,
            deadline_s=options.deadline,
            max_waiting=options.max_waiting,
            max_body_bytes=options.max_body,
            cors=options.cors,
            drain_s=options.drain,
            json_logs=options.log == "json",
            watch=options.watch,
            memory_gib=options.memory,
            otel_content=options.otel_content,
            otel=options.otel or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or None,
        )
        return serving.serve(lambda: load(options), Runs(options.runs), settings)

    parser = verb("serve", run, "serve the OpenAI-compatible API and the chat page")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help="require this key (repeatable); or DEMEANOR_API_KEYS=a,b",
    )
    parser.add_argument(
        "--keys",
        metavar="URL",
        help="require a key of this database, see `demeanor keys`, e.g. sqlite:///runs/keys.db",
    )
    parser.add_argument(
        "--deadline",
        type=_above_zero,
        metavar="SECONDS",
        help="end a request that takes longer (default: never)",
    )
    parser.add_argument(
        "--max-waiting",
        type=_whole,
        metavar="N",
        help="refuse requests at once (429) where N wait for a slot already",
    )
    parser.add_argument(
        "--max-body",
        type=_whole,
        default=1 << 20,
        metavar="BYTES",
        help="refuse longer request bodies (default: 1048576)",
    )
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin call the API (repeatable)",
    )
    parser.add_argument(
        "--drain",
        type=_above_zero,
        default=20.0,
        metavar="SECONDS",
        help="how long running requests may go on after SIGTERM (default: 20)",
    )
    parser.add_argument(
        "--log",
        choices=("text", "json"),
        default="text",
        help="json: one line per request on stderr, no contents, no keys",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="read the stack again when its file, or one it names, changes (SIGHUP does, too)",
    )
    parser.add_argument(
        "--memory",
        type=_above_zero,
        metavar="GIB",
        help="weights and caches may take so much; the least recently used idle ones go (default: all stay)",
    )
    parser.add_argument(
        "--otel",
        metavar="ENDPOINT",
        help="send OpenTelemetry spans there (OTLP over HTTP), e.g. http://localhost:4318; "
        "or OTEL_EXPORTER_OTLP_ENDPOINT",
    )
    parser.add_argument(
        "--otel-content", action="store_true", help="what is asked and answered goes into the spans, too"
    )


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"got '{text}', wanted a number above 0")
    return value


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"got '{text}', wanted 0 or a whole number above it")
    return int(text)
