"""A real MCP server of the SDK for tests; what it lists and how it behaves stands in a JSON file that it reads for each request.

`python desk_server.py PLAN.json` speaks over stdio, `python desk_server.py PLAN.json PORT` over streamable HTTP. The plan:
{"tools": [{"name", "description", "schema", "annotations", "output", "does"}], "ttl_ms": 0}. A tool `does` one of: echo, hang, die,
flood, image, structured, ask, fail, env, or says the text that stands there. The tool `announce` tells clients that the list changed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.shared.subscriptions import ToolsListChanged

PLAN = Path(sys.argv[1])
ECHO = {"type": "object", "properties": {"text": {"type": "string"}}}
BUS = InMemorySubscriptionBus()


def plan() -> dict[str, Any]:
    return dict(json.loads(PLAN.read_text(encoding="utf-8")))


async def list_tools(ctx: Any, params: Any) -> types.ListToolsResult:
    said = plan()
    if said.get("list_hangs"):
        await anyio.sleep(60)
    pages = said.get("pages", 1)
    at = int(params.cursor or 0) if params else 0
    count = -(-len(said["tools"]) // pages)
    tools = [
        types.Tool(
            name=tool["name"],
            title=tool.get("title"),
            description=tool.get("description"),
            input_schema=tool.get("schema", ECHO),
            output_schema=tool.get("output"),
            annotations=types.ToolAnnotations.model_validate(tool["annotations"])
            if tool.get("annotations")
            else None,
        )
        for tool in said["tools"][at * count : (at + 1) * count]
    ]
    cursor = str(at + 1) if (at + 1) * count < len(said["tools"]) or said.get("endless") else None
    return types.ListToolsResult(
        tools=tools, next_cursor=cursor, ttl_ms=said.get("ttl_ms", 0), cache_scope="private"
    )


async def call_tool(ctx: Any, params: Any) -> Any:
    tool = next((tool for tool in plan()["tools"] if tool["name"] == params.name), {"does": "fail"})
    arguments = params.arguments or {}
    does = tool.get("does", "echo")
    if does == "hang":
        await anyio.sleep(60)
    if does == "die":
        os._exit(1)
    if does == "announce":
        await BUS.publish(ToolsListChanged())
        try:
            await ctx.session.send_tool_list_changed()
        except Exception as error:
            return text(f"not announced: {error}")
    if does == "image":
        block = types.ImageContent(type="image", data="aGFsbG8=", mime_type="image/png")
        return types.CallToolResult(content=[block, types.TextContent(type="text", text="a picture")])
    if does == "structured":
        return types.CallToolResult(content=[], structured_content={"n": arguments.get("n", 1)})
    if does == "ask":
        wanted = types.ElicitRequest(
            params=types.ElicitRequestFormParams(
                message="Your password?", requested_schema={"type": "object", "properties": {}}
            )
        )
        return types.InputRequiredResult(input_requests={"a": wanted})
    said = {
        "echo": json.dumps(arguments),
        "flood": "x" * 3_000_000,
        "fail": "it broke",
        "env": json.dumps(dict(os.environ)),
        "announce": "announced",
        "pid": str(os.getpid()),
    }.get(does, does)
    return text(said, error=does == "fail")


def text(said: str, *, error: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=said)], is_error=error)


server: Server[Any] = Server(
    "desk",
    version="1",
    on_list_tools=list_tools,
    on_call_tool=call_tool,
    on_subscriptions_listen=ListenHandler(BUS),
)


async def main() -> None:
    if plan().get("silent"):
        await anyio.sleep(60)
    if len(sys.argv) > 2:
        import uvicorn

        app = server.streamable_http_app()
        await uvicorn.Server(uvicorn.Config(app, port=int(sys.argv[2]), log_level="error")).serve()
        return
    options = server.create_initialization_options(NotificationOptions(tools_changed=True))
    async with stdio_server() as (read, write):
        await server.run(read, write, options)


anyio.run(main)
