"""The `demeanor` field of a response: what every layer did, in the order in which it happened.

In: events. Out: plain JSON. Text is told as spans of the answer, so nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from demeanor.core.types import (
    Citation,
    Done,
    Event,
    Message,
    Passage,
    Prompted,
    PromptRead,
    Refusal,
    Text,
    Timing,
    ToolCalled,
    ToolResult,
    Usage,
)
from demeanor.server.assistant import ModelCard


def trace(card: ModelCard, choices: Sequence[Sequence[Event]], total_ms: float) -> dict[str, Any]:
    """The whole field: which variant answered, total milliseconds, and one entry per event of every choice."""
    events = [{"choice": i, **entry} for i, made in enumerate(choices) for entry in entries(made)]
    about = {"model": card.id, "stack_key": card.stack_key, "layers": list(card.layers)}
    return {**about, "ms": round(total_ms, 2), "events": events}


def entries(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as `{by, kind, ...}`; neighbouring texts of one layer become one span [start, end) of the answer."""
    found: list[dict[str, Any]] = []
    at = 0
    for event in events:
        if not isinstance(event, Text):
            found.append(entry(event))
        elif event.text:
            if found and found[-1]["kind"] == "text" and found[-1]["by"] == event.by:
                found[-1]["end"] = at + len(event.text)
            else:
                found.append({"by": event.by, "kind": "text", "start": at, "end": at + len(event.text)})
            at += len(event.text)
    return found


def entry(event: Event) -> dict[str, Any]:
    """One event that is not text."""
    match event:
        case Prompted(messages, by):
            return {"by": by, "kind": "prompted", "messages": [_message(m) for m in messages]}
        case PromptRead(tokens, by=by):
            return {"by": by, "kind": "prompt_read", "tokens": len(tokens)}
        case Passage(id, text, score, source, by):
            return {"by": by, "kind": "passage", "id": id, "text": text, "score": score, "source": source}
        case Citation(start, end, passage_id, by):
            return {"by": by, "kind": "citation", "start": start, "end": end, "passage_id": passage_id}
        case ToolCalled(call, by):
            return {
                "by": by,
                "kind": "tool_call",
                "id": call.id,
                "name": call.name,
                "arguments": call.arguments,
            }
        case ToolResult(call_id, name, content, error, by):
            return {
                "by": by,
                "kind": "tool_result",
                "id": call_id,
                "name": name,
                "content": content,
                "error": error,
            }
        case Refusal(by, rule, reason, text, stage):
            return {"by": by, "kind": "refusal", "rule": rule, "reason": reason, "text": text, "stage": stage}
        case Timing(by, ms):
            return {"by": by, "kind": "timing", "ms": round(ms, 3)}
        case Usage(prompt_tokens, completion_tokens, by):
            return {
                "by": by,
                "kind": "usage",
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
            }
        case Done(finish_reason, by):
            return {"by": by, "kind": "done", "finish_reason": finish_reason}
        case Text():
            raise TypeError("text is told as spans, see entries()")


def _message(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}
