"""A live connection to one MCP server, in a thread of its own: kept open off the request path, restored when it breaks.

In: a declared server. Out: the definitions that it lists now, and results of calls. Each connection has its own thread and event loop,
so a server that hangs, dies or floods its line harms only its own calls. The list is read again when the server says that it
changed, when its time to live is over, and after `recheck_s` at the latest.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demeanor.core.errors import DemeanorError
from demeanor.mcp.declaration import McpServer
from demeanor.mcp.pins import ToolDefinition
from demeanor.mcp.results import result_of
from demeanor.mcp.transports import MAX_STDERR, transport

log = logging.getLogger("demeanor.mcp")
MISSING = (
    "MCP servers need the package mcp, which is not installed (got '{error}'). Run: pip install 'demeanor[mcp]', or take `servers` out "
    "of the tools layer"
)
FIRST_RETRY_S, LAST_RETRY_S = 0.2, 30.0
MAX_TOOLS, MAX_PAGES = 10_000, 200
SETTLE_S = 5.0  # how long a server that let a call time out has for a sign of life


class UnavailableError(ValueError):
    """The server cannot take a call now; the text is for the model."""


@dataclass
class ServerConnection:
    """One server's thread; `state` is connecting, connected, failed or closed."""

    server: McpServer
    root: Path
    listed: tuple[ToolDefinition, ...] | None = None
    state: str = "connecting"
    why: str = ""
    protocol: str = ""
    connections: int = 0
    changed: Callable[[], None] = lambda: None
    """Called in the connection's thread whenever the state or the list may be another one."""
    _said: str = ""
    _settled: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _main: asyncio.Task[None] | None = None
    _client: Any = None
    _wake: asyncio.Event | None = None
    _broken: asyncio.Event | None = None

    def start(self) -> None:
        """Begin to connect. Raises DemeanorError if the SDK is not installed."""
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise DemeanorError(MISSING.format(error=error)) from None
        self._thread = threading.Thread(target=self._run, name=f"mcp {self.server.name}", daemon=True)
        self._thread.start()

    def settled(self, timeout_s: float) -> bool:
        """Wait until the first attempt to connect has ended; False if it goes on."""
        return self._settled.wait(timeout_s)

    def close(self) -> None:
        """End the connection and the program; waits for both."""
        loop, main, self.state = self._loop, self._main, "closed"
        if loop is not None and main is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(main.cancel)
        if self._thread is not None:
            self._thread.join(10)

    def call(
        self, name: str, arguments: Mapping[str, Any], schema: Mapping[str, Any] | None, timeout_s: float
    ) -> str:
        """Run a tool from any other thread and return its text.

        Raises ValueError with what the model may read, TimeoutError after `timeout_s`.
        """
        loop = self._loop
        if loop is None or self.state != "connected":
            raise UnavailableError("the tool's server is not available now")
        waiting = asyncio.run_coroutine_threadsafe(self._call(name, dict(arguments), timeout_s), loop)
        try:
            result = waiting.result(timeout_s + 1)
        except TimeoutError:
            waiting.cancel()
            raise
        return result_of(result, schema)

    # ---- in the connection's own thread ----

    def _run(self) -> None:
        with suppress(asyncio.CancelledError), asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._keep())

    async def _keep(self) -> None:
        """Connect, and connect again, until closed."""
        self._main, wait_s = asyncio.current_task(), FIRST_RETRY_S
        while self.state != "closed":
            before = self.connections
            try:
                await self._connected()
                why = "the connection ended"
            except asyncio.CancelledError:
                if self.state == "closed":
                    raise
                why = "the connection ended"  # a transport cancels its own task when its line breaks
            except Exception as error:
                why = _reason(error)
            self._client = None
            if self.state == "closed":
                return
            wait_s = FIRST_RETRY_S if self.connections > before else min(LAST_RETRY_S, 2 * wait_s)
            self._is("failed", f"{why}; {self._said[-300:].strip()}" if self._said else why)
            self._settled.set()
            await asyncio.sleep(wait_s)

    async def _connected(self) -> None:
        from mcp import Client
        from mcp_types import Implementation

        self._wake, self._broken, self._said = asyncio.Event(), asyncio.Event(), ""
        wake, broken = self._wake, self._broken

        async def heard(message: Any) -> None:
            if type(message).__name__ == "ToolListChangedNotification":
                wake.set()

        line = transport(self.server, self.root, self._hear, broken.set)
        mode = "legacy" if self.server.protocol == "legacy" else "auto"
        about = Implementation(name="demeanor", version="1")
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(self.server.connect_s):
                client = await stack.enter_async_context(
                    Client(line, mode=mode, message_handler=heard, client_info=about, cache=None)
                )
                ttl_s = await self._list(client)
            self._client, self.protocol = client, client.protocol_version
            self.connections += 1
            self._is("connected", "")
            self._settled.set()
            await self._watch(client, ttl_s)

    async def _watch(self, client: Any, ttl_s: float) -> None:
        """List the tools again when that is due, until the connection is broken."""
        assert self._wake is not None
        assert self._broken is not None
        subscription = asyncio.create_task(self._subscribed(client))
        waits = [asyncio.create_task(self._wake.wait()), asyncio.create_task(self._broken.wait())]
        try:
            while not self._broken.is_set():
                await asyncio.wait(waits, timeout=ttl_s, return_when=asyncio.FIRST_COMPLETED)
                if self._broken.is_set():
                    return
                if self._wake.is_set():
                    self._wake.clear()
                    waits[0] = asyncio.create_task(self._wake.wait())
                async with asyncio.timeout(min(SETTLE_S, self.server.connect_s)):
                    ttl_s = await self._list(client)
        finally:
            for task in (subscription, *waits):
                task.cancel()
            await asyncio.gather(subscription, *waits, return_exceptions=True)

    async def _subscribed(self, client: Any) -> None:
        """Hear of changes of the list in the protocol of 2026; earlier ones send notifications unasked."""
        assert self._wake is not None
        with suppress(Exception):
            async with client.listen(tools_list_changed=True) as events:
                async for _ in events:
                    self._wake.set()

    async def _list(self, client: Any) -> float:
        """Read the whole list; return the seconds until it should be read again."""
        from mcp_types import PaginatedRequestParams

        found, cursor, seen, ttl_ms = list[ToolDefinition](), None, set[str](), 0
        for _ in range(MAX_PAGES):
            page = await client.session.list_tools(params=PaginatedRequestParams(cursor=cursor))
            found += [self._definition(tool) for tool in page.tools]
            ttl_ms, cursor = getattr(page, "ttl_ms", None) or 0, page.next_cursor
            if cursor is None:
                break
            if cursor in seen or len(found) > MAX_TOOLS:
                raise UnavailableError(f"its list of tools does not end (after {len(found)})")
            seen.add(cursor)
        else:
            raise UnavailableError(f"its list of tools has more than {MAX_PAGES} pages")
        if len(found) > MAX_TOOLS:
            raise UnavailableError(f"it lists {len(found)} tools; at most {MAX_TOOLS} are read")
        if self.listed != (now := tuple(found)):
            self.listed = now
            self.changed()
        most = self.server.recheck_s
        return min(most, max(0.2, ttl_ms / 1000)) if ttl_ms else most

    def _definition(self, tool: Any) -> ToolDefinition:
        annotations = tool.annotations and tool.annotations.model_dump(
            by_alias=True, exclude_none=True, mode="json"
        )
        return ToolDefinition(
            self.server.name,
            tool.name,
            tool.title,
            tool.description,
            tool.input_schema,
            tool.output_schema,
            annotations,
        )

    async def _call(self, name: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        """Call a tool; a broken line is mended, and a server that lets a call time out has to show that it lives.

        The request is sent as it is: the SDK's `call_tool` would match patterns of the server's output schema with `re`, in time that
        a server can make endless.
        """
        from mcp.shared.exceptions import MCPError
        from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult, InputRequiredResult
        from pydantic import TypeAdapter, ValidationError

        client, broken, wake = self._client, self._broken, self._wake
        if client is None or broken is None or wake is None or broken.is_set():
            raise UnavailableError("the tool's server is not available now")
        request = CallToolRequest(params=CallToolRequestParams(name=name, arguments=arguments))
        answer: TypeAdapter[Any] = TypeAdapter(CallToolResult | InputRequiredResult)
        sending = asyncio.ensure_future(client.session.send_request(request, answer))
        breaking = asyncio.ensure_future(broken.wait())
        try:
            await asyncio.wait({sending, breaking}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and breaking.done():
                raise UnavailableError("the tool's server ended during the call")
            if not sending.done():
                wake.set()  # a list that does not come either ends the connection
                raise TimeoutError
            return sending.result()
        except MCPError as error:
            if "closed" in str(error).lower():
                broken.set()
                raise UnavailableError("the tool's server ended during the call") from None
            raise ValueError(f"the server refused the call: {error}") from None
        except ValidationError:
            raise ValueError("the server's answer is not a result of a tool call") from None
        except (ValueError, TimeoutError):
            raise
        except Exception as error:  # of the network
            broken.set()
            log.warning("MCP server %s: a call failed: %s", self.server.name, _reason(error))
            raise UnavailableError("the tool's server cannot be reached now") from None
        finally:
            for each in (sending, breaking):
                each.cancel()
            await asyncio.gather(sending, breaking, return_exceptions=True)

    def _hear(self, text: str) -> None:
        self._said = (self._said + text)[-MAX_STDERR:]

    def _is(self, state: str, why: str) -> None:
        """Change the state, and say so in the log."""
        if self.state == "closed":
            return
        if (state, why) != (self.state, self.why):
            told = log.warning if state == "failed" else log.info
            told("MCP server %s: %s%s", self.server.name, state, f": {why}" if why else f" ({self.protocol})")
        self.state, self.why = state, why
        self.changed()


def _reason(error: BaseException) -> str:
    """The first cause of an error, in a few words."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {str(error)[:300]}"
