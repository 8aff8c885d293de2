"""What clients see of a trace: entries of `demeanor.events` without the texts that the operator does not show (`serve: show`).

Which layer did what stays visible; only texts go.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from demeanor.server.assistant import TraceView


def shown_entries(entries: Sequence[dict[str, Any]], shown: TraceView) -> list[dict[str, Any]]:
    """The entries of one choice, in order."""
    if shown == TraceView():
        return list(entries)
    cited = {entry["passage_id"] for entry in entries if entry["kind"] == "citation"}
    return [_without(entry, _hidden(entry, shown, cited)) for entry in entries]


def _hidden(entry: dict[str, Any], shown: TraceView, cited: set[str]) -> tuple[str, ...]:
    """The fields of an entry that are left out."""
    kind = entry["kind"]
    if kind == "prompted" and not shown.prompts:
        return ("messages",)
    if kind in ("passage", "citation") and shown.passages == "none":
        return ("text", "heading", "cited_text")
    if kind == "passage" and shown.passages == "cited" and entry["id"] not in cited:
        return ("text", "heading")
    if kind in ("tool_call", "tool_result", "tool_decision") and not shown.tools:
        return ("arguments", "content", "detail")
    return ()


def _without(entry: dict[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in fields} if fields else entry
