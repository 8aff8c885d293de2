"""The app on a free port, for clients that need a socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn

from demeanor.server.application import app
from demeanor.server.assistant import ServedAssistant
from demeanor.server.lifecycle import TimeLimits, timed_protocol


@contextmanager
def served(assistant: ServedAssistant, **options: Any) -> Iterator[str]:
    """Serve an assistant in a thread; gives its address."""
    with live(app(assistant, **options)) as address:
        yield address


@contextmanager
def live(api: Any, limits: TimeLimits = TimeLimits()) -> Iterator[str]:
    """Serve any ASGI app in a thread, as `serve` does; gives its address."""
    config = uvicorn.Config(
        api,
        port=0,
        log_config=None,  # the process keeps its loggers as they are
        log_level="critical",
        timeout_graceful_shutdown=2,
        ws="none",
        http=timed_protocol(limits),
        timeout_keep_alive=limits.idle_s,  # type: ignore[arg-type]
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 120
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(120)


@contextmanager
def other_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A stand-in for another server, in a thread; gives its base URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1"
        finally:
            http.shutdown()
            thread.join()
