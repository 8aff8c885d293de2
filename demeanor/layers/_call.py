"""Runs one tool call: arguments checked against the tool's schema, time and length bounded, every failure a result to read.

In: a ToolCall and the tools there are. Out: a ToolResult. It never raises but when it is cancelled.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from demeanor.errors import unknown
from demeanor.layers._kit import Tool
from demeanor.layers._schema import mistakes
from demeanor.types import ToolCall, ToolResult


async def called(call: ToolCall, tools: Mapping[str, Tool], timeout_s: float, max_chars: int) -> ToolResult:
    """Run a call. What a tool says of its arguments (ValueError, ArithmeticError) is told, other failures by their type only."""
    tool = tools.get(call.name)
    if tool is None:
        return failed(call, unknown(call.name, tools, noun="tool"))
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        return failed(call, f"arguments are not JSON: {error}")
    if wrong := mistakes(arguments, tool.spec.parameters):
        return failed(call, "; ".join(wrong))
    try:
        text = await asyncio.wait_for(tool.run(arguments), timeout_s)
    except TimeoutError:
        return failed(call, f"no answer within {timeout_s:g} s")
    except (ValueError, ArithmeticError) as error:
        return failed(call, shortened(str(error), max_chars))
    except Exception as error:
        return failed(call, type(error).__name__)
    return ToolResult(call.id, call.name, shortened(text, max_chars))


def failed(call: ToolCall, why: str) -> ToolResult:
    """A result that says what went wrong."""
    return ToolResult(call.id, call.name, f"error: {why}", error=True)


def shortened(text: str, max_chars: int) -> str:
    """The text, or as much of it as allowed and how much is missing."""
    return text if len(text) <= max_chars else f"{text[:max_chars]} [{len(text) - max_chars} more characters]"
