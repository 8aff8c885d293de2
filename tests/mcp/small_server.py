"""A server of the protocol of 2025 in plain Python, which starts in no time; the plan is that of `desk_server.py`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

PLAN = Path(sys.argv[1])


def tool(about: dict[str, Any]) -> dict[str, Any]:
    schema = about.get("schema", {"type": "object", "properties": {"text": {"type": "string"}}})
    kept = {key: about[key] for key in ("name", "title", "description", "annotations") if key in about}
    return {**kept, "inputSchema": schema}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    plan = json.loads(PLAN.read_text(encoding="utf-8"))
    if method == "initialize":
        about = {"name": "small", "version": "1"}
        return {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        if plan.get("list_hangs"):
            time.sleep(60)
        at, pages = int(params.get("cursor") or 0), plan.get("pages", 1)
        count = -(-len(plan["tools"]) // pages)
        more = {"nextCursor": str(at + 1)} if at + 1 < pages or plan.get("endless") else {}
        return {"tools": [tool(about) for about in plan["tools"][at * count : (at + 1) * count]], **more}
    if method == "tools/call":
        does = next(
            (t.get("does", "echo") for t in plan["tools"] if t["name"] == params["name"]), "no such tool"
        )
        if does == "die":
            os._exit(1)
        if does == "hang":
            time.sleep(60)
        text = {
            "echo": json.dumps(params.get("arguments") or {}),
            "flood": "x" * 3_000_000,
            "pid": str(os.getpid()),
            "env": json.dumps(dict(os.environ)),
        }.get(does, does)
        return {"content": [{"type": "text", "text": text}], "isError": False}
    raise KeyError(method)


if json.loads(PLAN.read_text(encoding="utf-8")).get("silent"):
    time.sleep(60)
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    try:
        said = {"result": answer(message["method"], message.get("params") or {})}
    except KeyError:
        said = {"error": {"code": -32601, "message": "Method not found"}}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **said}), flush=True)
