"""What a model reads of an MCP tool's result: its texts; images, sounds and links by name only.

In: the SDK's result. Out: text, or ValueError with the server's own words where it says that the call failed. Whatever a server
writes here is data without authority.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from demeanor.core.json_schema import mistakes, shortened


def result_of(result: Any, output_schema: Mapping[str, Any] | None) -> str:
    """The text of a tool's result. Raises ValueError for a failure, a result that does not fit, or a question to a person."""
    if getattr(result, "result_type", "complete") == "input_required":
        raise ValueError(_question(result))
    texts = [_block(block) for block in result.content]
    text = "\n".join(text for text in texts if text)
    if result.is_error:
        raise ValueError(text or "the tool failed and did not say why")
    structured = result.structured_content
    if output_schema is not None:
        wrong = mistakes(structured, output_schema, "the result")
        if wrong:
            raise ValueError(
                f"the server's result does not fit the schema that it declares: {shortened('; '.join(wrong), 300)}"
            )
    if structured is not None and not any(block.type == "text" for block in result.content):
        text = "\n".join(part for part in (text, json.dumps(structured, ensure_ascii=False)) if part)
    return text


def _question(result: Any) -> str:
    """Why a tool that asks a person in the middle of a call is not answered (elicitation, sampling, roots)."""
    asked = [
        str(getattr(request.params, "message", "") or request.method)
        for request in (result.input_requests or {}).values()
    ]
    said = f": {shortened('; '.join(asked), 300)}" if asked else ""
    return f"the tool asks for input in the middle of the call, which this assistant cannot give{said}"


def _block(block: Any) -> str:
    match block.type:
        case "text":
            return str(block.text)
        case "image" | "audio":
            return f"[{block.type} {block.mime_type}, {len(block.data) * 3 // 4} bytes, not shown]"
        case "resource_link":
            return f"[link to {block.name}: {block.uri}]"
        case "resource":
            text = getattr(block.resource, "text", None)
            return str(text) if text is not None else f"[file {block.resource.uri}, not shown]"
    return f"[{block.type}, not shown]"
