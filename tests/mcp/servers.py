"""Real servers for tests: a plan file, and connections to `desk_server.py` that are closed at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demeanor.mcp.connection import ServerConnection
from demeanor.mcp.declaration import McpServer
from demeanor.mcp.pins import write_lock
from demeanor.mcp.servers import McpServers

SCRIPT = Path(__file__).parent / "desk_server.py"
SMALL = Path(__file__).parent / "small_server.py"
WAIT_S = 30.0  # the machine may be busy


def wait_for(what: Callable[[], Any]) -> Any:
    """What becomes true within WAIT_S."""
    until = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)
    return found


@dataclass
class Plan:
    """What a server lists; written atomically, read by the server for each request."""

    path: Path

    def write(self, *tools: dict[str, Any], **about: Any) -> None:
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({"tools": list(tools), **about}), encoding="utf-8")
        os.replace(part, self.path)


def stdio(plan: Plan, **settings: Any) -> McpServer:
    command = (sys.executable, str(SCRIPT), str(plan.path))
    return McpServer(name="desk", command=command, connect_s=WAIT_S, **settings)


def small(plan: Plan, **settings: Any) -> McpServer:
    """The same in plain Python, of the earlier protocol, for tests that start many."""
    command = (sys.executable, "-I", "-S", str(SMALL), str(plan.path))
    return McpServer(name="desk", command=command, connect_s=WAIT_S, **settings)


@contextmanager
def http(plan: Plan) -> Iterator[str]:
    """A server over streamable HTTP in a process of its own; yields its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(plan.path), str(port)])
    try:
        wait_for(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def connected(server: McpServer) -> Iterator[ServerConnection]:
    connection = ServerConnection(server, Path.cwd())
    connection.start()
    try:
        assert connection.settled(WAIT_S + 5)
        yield connection
    finally:
        connection.close()


def approve(server: McpServer, lock: Path) -> None:
    """Approve what a server lists now."""
    with connected(server) as connection:
        assert connection.listed is not None, connection.why
        write_lock(lock, {server.name: {tool.name: tool for tool in connection.listed}})


@contextmanager
def opened(server: McpServer, lock: Path, **about: Any) -> Iterator[McpServers]:
    servers = McpServers([server], Path.cwd(), lock, **about).start()
    try:
        yield servers
    finally:
        servers.close()
