"""The MCP servers of a stack's tools layers: opened for an assistant, listed, compared with what was approved, and approved.

In: a stack. Out: live servers, and the lock file. It builds and writes only; the command line asks and prints.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demeanor.core import registry
from demeanor.core.errors import DemeanorError, UsageError, unknown
from demeanor.core.types import ToolCall, ToolResult
from demeanor.layers import Kit
from demeanor.layers.tools import Spec, load, offered
from demeanor.layers.tools.calls import TOOLS, called
from demeanor.layers.tools.running import ASKED, asks_for
from demeanor.mcp.connection import ServerConnection
from demeanor.mcp.declaration import McpServer
from demeanor.mcp.pins import Standing, ToolDefinition, model_names, read_lock, standing, write_lock
from demeanor.mcp.servers import McpServers, asks_first, visible_tools
from demeanor.stack.stack import Stack


def opened(stack: Stack, spec: Spec, taken: tuple[str, ...]) -> McpServers:
    """Connect to the servers of a tools layer; `taken` are the names of its other tools."""
    command = f"demeanor tools approve {stack.path}"
    found = McpServers(spec.servers or (), stack.root, lock_of(stack, spec), taken, spec.timeout_s, command)
    return found.start()


def lock_of(stack: Stack, spec: Spec) -> Path:
    """The lock file of a tools layer."""
    return stack.root / str(spec.lock)


def layers_of(stack: Stack) -> list[tuple[str, Spec]]:
    """Every tools layer that has servers, by name."""
    return [(x.name, x.spec) for x in stack.layers if isinstance(x.spec, Spec) and x.spec.servers]


@dataclass(frozen=True, slots=True)
class ListedServer:
    """One server as it lists its tools now, beside what was approved."""

    server: McpServer
    lock: Path
    standing: Standing
    why: str = ""
    """Why it could not be listed; empty if it was."""


def listed(stack: Stack, wanted: str | None = None) -> list[ListedServer]:
    """Connect to the servers of a stack, or to one, and compare. Raises UsageError if there is none of that name."""
    every = [(spec, server) for _, spec in layers_of(stack) for server in spec.servers or ()]
    if not every:
        raise UsageError(
            f"{stack.path}: no tools layer has servers. Add: - {{kind: tools, servers: [{{name: docs, command: [...]}}]}}"
        )
    chosen = [(spec, server) for spec, server in every if wanted in (None, server.name)]
    if not chosen:
        raise UsageError(
            f"{stack.path}: {unknown(str(wanted), [server.name for _, server in every], noun='server')}"
        )
    connections = [ServerConnection(server, stack.root) for _, server in chosen]
    try:
        for connection in connections:
            connection.start()
        found = []
        for (spec, server), connection in zip(chosen, connections):
            lock = lock_of(stack, spec)
            settled = connection.settled(server.connect_s + 5)
            why = "" if settled and connection.state == "connected" else connection.why or "no answer in time"
            approved = read_lock(lock).get(server.name, {})
            now = visible_tools(server, connection.listed or ())
            found.append(ListedServer(server, lock, standing(approved, now), why))
        return found
    finally:
        for connection in connections:
            connection.close()


def approve(lists: list[ListedServer]) -> None:
    """Write what the servers list now into their lock files; servers of other stacks that share one stay as they are.

    Raises DemeanorError for a server that could not be listed, or that lists a tool twice.
    """
    for each in lists:
        if each.why:
            raise DemeanorError(f"MCP server '{each.server.name}': {each.why}. Nothing was approved")
        if each.standing.twice:
            raise DemeanorError(
                f"MCP server '{each.server.name}' lists {', '.join(map(ascii, each.standing.twice))} twice. Nothing was approved"
            )
    for each in lists:
        approved = {server: dict(tools) for server, tools in read_lock(each.lock).items()}
        approved[each.server.name] = now_listed(each.standing)
        write_lock(each.lock, approved)


def now_listed(found: Standing) -> dict[str, ToolDefinition]:
    """The tools that a server lists now, by name."""
    return {**found.good, **{name: new for name, (_, new) in found.changed.items()}, **found.new}


@dataclass(frozen=True, slots=True)
class StackTool:
    """One tool of a stack as the command line shows it; `standing` is offered, or why it is not."""

    name: str
    source: str
    standing: str
    asks: str
    lines: tuple[str, ...]
    pin: str = ""


def tools_of(stack: Stack) -> list[StackTool]:
    """Every tool of every tools layer: its own, run by nobody, and those that its servers list now."""
    found = list[StackTool]()
    specs = [layer.spec for layer in stack.layers if isinstance(layer.spec, Spec)]
    if not specs:
        raise UsageError(f"{stack.path}: it has no tools layer. Add: - {{kind: tools, allow: [calculator]}}")
    for spec in specs:
        own = offered(spec, _kit(stack, spec))
        for name, tool in own.items():
            source = str(spec.module) if spec.module and name not in registry.known(TOOLS) else "built in"
            asks = asks_for(name, tool, spec.approve or ())
            lines = (
                f"description: {tool.spec.description}",
                f"arguments: {json.dumps(dict(tool.spec.parameters))}",
            )
            found.append(StackTool(name, source, "offered", asks, lines))
        names = model_names(read_lock(lock_of(stack, spec)), tuple(own)) if spec.servers else {}
        for server in spec.servers or ():
            (listing,) = listed(stack, server.name)
            found += _of_server(listing, spec, names)
    return found


def _of_server(listing: ListedServer, spec: Spec, names: Mapping[tuple[str, str], str]) -> list[StackTool]:
    server, now = listing.server, listing.standing
    if listing.why:
        return [StackTool(f"{server.name}.*", server.name, f"not reached: {listing.why}", "", ())]
    reasons = now.reasons()
    found = []
    for name, definition in sorted({**now.gone, **now_listed(now)}.items()):
        known_as = names.get((server.name, name))
        standing = reasons.get(name) or ("offered" if known_as else "its name cannot be called")
        asks = asks_first(server, definition) or (ASKED if known_as in (spec.approve or ()) else "")
        shown = known_as or f"{server.name}.{name}"
        found.append(StackTool(shown, server.name, standing, asks, tuple(definition.lines()), definition.pin))
    return found


def _kit(stack: Stack, spec: Spec) -> Kit:
    """What the layer's own tools need."""

    def nothing(*_: Any) -> Any:
        raise AssertionError("a tool needs no index and no database")

    return Kit(
        root=stack.root,
        clock=time.monotonic,
        now=lambda: datetime.now(UTC),
        count_tokens=lambda messages, tools: 0,
        tools=load(name for name in spec.allow if name in registry.known(TOOLS)),
        open_index=nothing,
        open_store=nothing,
    )


def call(stack: Stack, name: str, arguments: str) -> ToolResult:
    """Run one tool as the layer would, without a model: own tools, and approved tools of servers.

    Raises UsageError with the known names if none is offered under that name.
    """
    known = dict[str, str]()
    for spec in [layer.spec for layer in stack.layers if isinstance(layer.spec, Spec)]:
        own = offered(spec, _kit(stack, spec))
        servers = opened(stack, spec, tuple(own)) if spec.servers else None
        try:
            every = {**own, **servers.tools()} if servers else own
            if name in every:
                made = ToolCall("call", name, arguments)
                return asyncio.run(called(made, every, spec.timeout_s, spec.max_result_chars))
            known |= dict.fromkeys(every, "") | dict(servers.withheld() if servers else {})
        finally:
            if servers:
                servers.close()
    if why := known.get(name):
        raise UsageError(f"{name}: {why}")
    raise UsageError(f"{stack.path}: {unknown(name, known, noun='tool')}")
