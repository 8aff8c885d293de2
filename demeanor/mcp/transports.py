"""The lines to MCP servers, with bounds that the SDK's own do not have: the length of a message, and what a program may read of our
environment.

In: a declared server. Out: a transport of the SDK. A program gets PATH, HOME and the like, the variables that its declaration names,
and nothing else; its stderr is read, and the end of it kept for the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from demeanor.core.errors import UsageError
from demeanor.mcp.declaration import McpServer

INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "USER")
MAX_STDERR = 2000  # characters of a program's last words that are kept
STOP_S = 1.0  # between the end of its input, SIGTERM and SIGKILL


def environment(server: McpServer) -> dict[str, str]:
    """What a program sees of our environment. Raises UsageError for a declared variable that is not set."""
    plain = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return plain | {name: _value(server, source) for name, source in (server.env or {}).items()}


def headers(server: McpServer) -> dict[str, str]:
    """The declared headers with their values. Raises UsageError for a variable that is not set."""
    return {name: _value(server, source) for name, source in (server.headers_env or {}).items()}


def _value(server: McpServer, variable: str) -> str:
    if variable not in os.environ:
        raise UsageError(f"MCP server '{server.name}': the environment variable {variable} is not set")
    return os.environ[variable]


def transport(server: McpServer, root: Path, said: Callable[[str], None], ended: Callable[[], None]) -> Any:
    """The line to a server; `said` gets what a program writes to stderr, `ended` is called when a program's output ends."""
    if server.command is not None:
        return program(server, root, said, ended)
    return web(server)


@asynccontextmanager
async def web(server: McpServer) -> AsyncGenerator[Any, None]:
    """A streamable HTTP connection whose answers are bounded."""
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    class Bounded(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            response = await super().handle_async_request(request)
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                response.stream = _Counted(response.stream, server.max_bytes)
            return response

    class _Counted(httpx2.AsyncByteStream):
        def __init__(self, inner: Any, left: int) -> None:
            self.inner, self.left = inner, left

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for chunk in self.inner:
                self.left -= len(chunk)
                if self.left < 0:
                    raise httpx2.StreamError(f"an answer of more than {server.max_bytes} bytes")
                yield chunk

        async def aclose(self) -> None:
            await self.inner.aclose()

    assert server.url is not None
    timeout = httpx2.Timeout(server.connect_s, read=None)  # each request has its own limit
    async with (
        httpx2.AsyncClient(headers=headers(server), transport=Bounded(), timeout=timeout) as client,
        streamable_http_client(
            server.url, http_client=client, max_sse_event_size=server.max_bytes
        ) as streams,
    ):
        yield streams


@asynccontextmanager
async def program(
    server: McpServer, root: Path, said: Callable[[str], None], ended: Callable[[], None]
) -> AsyncGenerator[Any, None]:
    """A started program and its lines of JSON; one that is longer than `max_bytes` ends the connection."""
    import anyio
    from mcp.shared.message import SessionMessage

    assert server.command is not None
    process = await asyncio.create_subprocess_exec(
        *server.command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=root,
        env=environment(server),
        limit=server.max_bytes,
        start_new_session=True,
    )
    to_us, ours = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    theirs, to_them = anyio.create_memory_object_stream[SessionMessage](0)
    tasks = [
        asyncio.create_task(work)
        for work in (
            _read(process, to_us, said, ended),
            _write(process, to_them, ended),
            _listen(process, said),
        )
    ]
    try:
        yield ours, theirs
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.shield(_stop(process))
        await asyncio.gather(*tasks, return_exceptions=True)
        for stream in (to_us, ours, theirs, to_them):
            stream.close()


async def _read(
    process: asyncio.subprocess.Process, to_us: Any, said: Callable[[str], None], ended: Callable[[], None]
) -> None:
    from mcp.shared.message import SessionMessage
    from mcp_types import jsonrpc_message_adapter

    assert process.stdout is not None
    try:
        while line := await process.stdout.readline():
            if not line.strip():
                continue
            try:
                message = SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
            except ValueError:
                said(f"a line on stdout that is no message: {line[:200]!r}")
                continue
            await to_us.send(message)
    except ValueError:  # asyncio's word for a line beyond the limit
        said("a message longer than max_bytes")
    except Exception as error:
        said(f"its output cannot be read: {type(error).__name__}")
    finally:
        to_us.close()
        ended()


async def _write(process: asyncio.subprocess.Process, to_them: Any, ended: Callable[[], None]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        async for message in to_them:
            text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()
        return
    ended()


async def _listen(process: asyncio.subprocess.Process, said: Callable[[str], None]) -> None:
    assert process.stderr is not None
    while chunk := await process.stderr.read(4096):
        said(chunk.decode("utf-8", "replace"))


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End a program and what it started: the end of its input, then SIGTERM, then SIGKILL."""
    if process.stdin is not None:
        process.stdin.close()
    for signal_ in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal_)  # its children may live on without it
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), STOP_S)
