"""What a row says, as text and as words: what curation compares, measures and searches.

In: raw columns, or rows. Out: text, words, n-grams; a row as columns again. It judges nothing.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from demeanor.types import Example, Message, Messages, Preference, ToolSpec, TrainingRow

SAID = (
    "system",
    "text",
    "prompt",
    "instruction",
    "input",
    "messages",
    "conversations",
    "output",
    "completion",
    "chosen",
    "rejected",
    "completions",
    "target",
)
SILENT = frozenset(
    {"role", "from", "id", "type", "tool_call_id"}
)  # keys of messages and calls that say nothing
WORD = re.compile(r"\w+(?:['’]\w+)*")


def row_text(row: Any) -> str:
    """Everything a raw row says, in the order of SAID, one part a line; all its texts if it has none of those columns."""
    if isinstance(row, str):
        return row
    if not isinstance(row, Mapping):
        return ""
    named = [row[name] for name in SAID if row.get(name) is not None]
    return "\n".join(part for value in (named or list(row.values())) for part in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """The texts in a column: itself, contents of messages, calls (no roles or ids); JSON text that holds messages is read."""
    if isinstance(value, str):
        if value.startswith("[{") and value.endswith("}]"):
            try:
                yield from _texts(json.loads(value))
                return
            except ValueError:
                pass
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name not in SILENT:
                yield from _texts(inner)
    elif isinstance(value, Sequence):
        for one in value:
            yield from _texts(one)


def normal(text: str) -> str:
    """Text in one form: NFKC, lower case, words with single spaces and nothing between them."""
    return " ".join(words(text))


def words(text: str) -> list[str]:
    """The words of a text in lower case, punctuation left out."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def ngrams(tokens: Sequence[str], n: int) -> Iterator[str]:
    """Every `n` words in a row, joined by spaces."""
    return (" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def as_columns(row: TrainingRow) -> dict[str, Any]:
    """A row as the columns that `rows.parse` reads it from."""
    columns: dict[str, Any] = {}
    if isinstance(row, Example):
        if row.text is not None:
            return {"text": row.text}
        start = row.trained_from
        columns = (
            {"prompt": _messages(row.messages[:start]), "completion": _messages(row.messages[start:])}
            if start
            else {"messages": _messages(row.messages)}
        )
    elif isinstance(row, Preference):
        columns = {"prompt": _messages(row.prompt)}
        if row.ranks == (0, 1):
            columns |= {"chosen": _messages(row.completions[0]), "rejected": _messages(row.completions[1])}
        else:
            columns |= {"completions": [_messages(c) for c in row.completions], "ranks": list(row.ranks)}
        columns |= {"margin": row.margin} if row.margin is not None else {}
    else:
        columns = {
            "prompt": _messages(row.prompt),
            "completion": _messages(row.completion),
            "label": row.desirable,
        }
    columns |= {"tools": [_tool(t) for t in row.tools]} if row.tools else {}
    return columns | ({"chat_template_kwargs": dict(row.template_kwargs)} if row.template_kwargs else {})


def _messages(messages: Messages) -> list[dict[str, Any]]:
    return [_message(m) for m in messages]


def _message(message: Message) -> dict[str, Any]:
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
        for c in message.tool_calls
    ]
    extra = {"tool_calls": calls or None, "tool_call_id": message.tool_call_id, "name": message.name}
    return {
        "role": message.role,
        "content": message.content,
        **{k: v for k, v in extra.items() if v is not None},
    }


def _tool(tool: ToolSpec) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)},
    }
