"""All MCP servers of a stack as tools: those that were approved, are listed unchanged now, and whose server is connected.

In: declared servers and a lock file. Out: tools by the name that a model calls them by, and why every other one is withheld. A tool
whose definition changes while it is served is withdrawn at once; the others stay.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demeanor.core.table import visible
from demeanor.core.types import ToolSpec
from demeanor.mcp.connection import ServerConnection
from demeanor.mcp.declaration import McpServer
from demeanor.mcp.pins import Approved, Standing, ToolDefinition, model_names, read_lock, standing

log = logging.getLogger("demeanor.mcp")
MORE_S = 0.5  # the layer gives a call up first


@dataclass(frozen=True, slots=True)
class ServerTool:
    """An approved tool of a server, ready to be called; `needs_approval` says why a person has to allow each call."""

    spec: ToolSpec
    run: Callable[[Mapping[str, Any]], Any]
    server: str
    needs_approval: str = ""


@dataclass(frozen=True, slots=True)
class ServerState:
    """A server as metrics and pages show it; `offered` and `withheld` count its tools."""

    name: str
    state: str
    offered: int
    withheld: int


@dataclass
class McpServers:
    """The connections of a stack, shared by all its variants."""

    servers: Sequence[McpServer]
    root: Path
    lock: Path
    taken: Sequence[str] = ()
    timeout_s: float = 10.0
    command: str = "demeanor tools approve STACK"
    """What the log tells an operator to run for a tool that is withheld."""
    _approved: Approved = field(default_factory=dict)
    _names: dict[tuple[str, str], str] = field(default_factory=dict)
    _connections: dict[str, ServerConnection] = field(default_factory=dict)
    _tools: dict[str, dict[str, ServerTool]] = field(default_factory=dict)
    _withheld: dict[str, dict[str, str]] = field(default_factory=dict)

    def start(self) -> McpServers:
        """Read the lock file and connect to every server; waits until each has answered once or failed, at most `connect_s`.

        A server that cannot be reached stops nobody: its tools are withheld until it can. Raises DataError for a lock file
        that cannot be used.
        """
        self._approved = read_lock(self.lock)
        declared = {server.name for server in self.servers}
        self._approved = {name: tools for name, tools in self._approved.items() if name in declared}
        self._names = model_names(self._approved, self.taken)
        for server in self.servers:
            connection = ServerConnection(server, self.root)
            connection.changed = lambda server=server, connection=connection: self._judge(server, connection)  # type: ignore[misc]
            self._connections[server.name] = connection
            self._judge(server, connection)
        for connection in self._connections.values():
            connection.start()
        for connection in self._connections.values():
            connection.settled(connection.server.connect_s + 1)
        return self

    def close(self) -> None:
        """End all connections."""
        for connection in self._connections.values():
            connection.close()

    def tools(self) -> dict[str, ServerTool]:
        """The tools that may be offered now, by the name that a model calls them by, in a fixed order."""
        found = {name: tool for tools in list(self._tools.values()) for name, tool in tools.items()}
        return {name: found[name] for name in sorted(found)}

    def withheld(self) -> dict[str, str]:
        """Why each other tool is not offered: SERVER.TOOL to a short sentence."""
        return {
            f"{server}.{name}": why
            for server, tools in sorted(self._withheld.items())
            for name, why in sorted(tools.items())
        }

    def states(self) -> list[ServerState]:
        """Every server with its counts."""
        return [
            ServerState(name, each.state, len(self._tools.get(name, ())), len(self._withheld.get(name, ())))
            for name, each in self._connections.items()
        ]

    def standing(self, name: str) -> Standing:
        """A server's tools against what was approved, as it lists them now."""
        connection = self._connections[name]
        return standing(
            self._approved.get(name, {}), visible_tools(connection.server, connection.listed or ())
        )

    def connection(self, name: str) -> ServerConnection:
        return self._connections[name]

    def _judge(self, server: McpServer, connection: ServerConnection) -> None:
        """Decide again which tools of a server may be offered."""
        approved = self._approved.get(server.name, {})
        if connection.state != "connected" or connection.listed is None:
            self._tools[server.name] = {}
            self._withheld[server.name] = dict.fromkeys(approved, "the server is not connected")
            return
        now = standing(approved, visible_tools(server, connection.listed))
        reasons = now.reasons()
        tools = dict[str, ServerTool]()
        for name, definition in now.good.items():
            known_as = self._names.get((server.name, name))
            if known_as is None:
                reasons[name] = "its name cannot be called"
            else:
                tools[known_as] = self._tool(server, connection, definition, known_as)
        before = self._withheld.get(server.name)
        self._tools[server.name], self._withheld[server.name] = tools, reasons
        if reasons != before and reasons:
            self._warn(server, now, reasons)

    def _warn(self, server: McpServer, now: Standing, reasons: Mapping[str, str]) -> None:
        shown = "; ".join(
            f"{visible(name[:64])}: {why}".replace("\n", " ") for name, why in sorted(reasons.items())[:10]
        )
        more = f" and {len(reasons) - 10} more" if len(reasons) > 10 else ""
        log.warning(
            "MCP server %s: %d tools are withheld: %s%s. See what changed and approve it with: %s %s",
            server.name,
            len(reasons),
            shown,
            more,
            self.command,
            server.name,
        )

    def _tool(
        self, server: McpServer, connection: ServerConnection, definition: ToolDefinition, known_as: str
    ) -> ServerTool:
        pin = definition.pin

        def run(arguments: Mapping[str, Any]) -> str:
            current = [tool for tool in connection.listed or () if tool.name == definition.name]
            if len(current) != 1 or current[0].pin != pin:
                raise ValueError("the tool was withdrawn: its definition changed")
            return connection.call(
                definition.name, arguments, definition.output_schema, self.timeout_s + MORE_S
            )

        spec = ToolSpec(known_as, definition.description or definition.title or "", definition.input_schema)
        return ServerTool(spec, run, server.name, asks_first(server, definition))


def visible_tools(server: McpServer, listed: Sequence[ToolDefinition]) -> list[ToolDefinition]:
    """The listed tools that the stack lets in at all (`allow`)."""
    return [tool for tool in listed if server.allow is None or tool.name in server.allow]


def asks_first(server: McpServer, definition: ToolDefinition) -> str:
    """Why a person must allow each call of a tool; empty if none must. The annotations are the server's word, and pinned."""
    hints = definition.annotations or {}
    match server.approve or "destructive":
        case "all":
            return f"every call to {server.name} is asked for"
        case "writes" if hints.get("readOnlyHint") is not True:
            return "the tool is not marked as read-only"
        case "destructive" if hints.get("destructiveHint") is True and hints.get("readOnlyHint") is not True:
            return "the tool is marked as destructive"
    return ""
