"""Grammar-constrained tool calls: forces a call, or calls whose arguments fit their schema.

In: a turn's decoding, its tools and the template's format of calls. Out: the decoding with a grammar as its
format. Text besides calls, or the request's response_format, is not constrained further.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from demeanor.core.errors import DecodingError
from demeanor.core.types import Decoding, OutputFormat, ToolSpec
from demeanor.text.template import Reader
from demeanor.text.tool_calls import CallReader, needs_grammar

ANY = {"type": "object"}


def constrain_tool_calls(
    decoding: Decoding, offered: Sequence[ToolSpec], choice: str, reader: Reader, special: Mapping[str, int]
) -> Decoding:
    """Return the decoding with the grammar that `choice` and strict tools need; `special` are special token
    ids.

    A demanded call (`required`, or a name) is exactly one call that fits its schema, strict or not. Raises
    DecodingError if the template has no format of calls, or the name is not an offered tool.
    """
    if not needs_grammar(decoding, offered, choice):
        return decoding
    demanded = choice not in ("auto", "none")
    if not isinstance(reader, CallReader):
        raise DecodingError(
            "this template has no format of tool calls that decoding could enforce; use tool_choice auto",
            "tool_choice",
        )
    called = [tool for tool in offered if choice in ("auto", "required", tool.name)]
    if not called:
        raise DecodingError(f"tool_choice: '{choice}' is not among the offered tools", "tool_choice")
    return replace(
        decoding,
        form=OutputFormat("grammar", _grammar(called, reader.marks, special, demanded, decoding.form)),
    )


def enforced_schemas(offered: Sequence[ToolSpec], choice: str) -> list[tuple[ToolSpec, OutputFormat]]:
    """Return the tools whose calls are held to their schema, each with it."""
    return [
        (tool, OutputFormat("json_schema", json.dumps(_schema(tool.parameters))))
        for tool in offered
        if choice in ("auto", "required", tool.name) and (tool.strict or choice != "auto")
    ]


def _grammar(
    tools: Sequence[ToolSpec],
    marks: tuple[str, str],
    special: Mapping[str, int],
    demanded: bool,
    form: OutputFormat | None,
) -> str:
    """Return one Lark grammar of llguidance; calls are written as `call_text` writes them, as in training."""
    opening, closing = (_mark(mark, special) for mark in marks)
    gap = r'"\n"' if marks[1] else '" "?'
    tail = f" {gap} {closing}" if marks[1] else ""
    rules = [f"body: {gap} ({' | '.join(f'call_{i}' for i in range(len(tools)))}){tail}"]
    for i, tool in enumerate(tools):
        head = f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": '
        rules += [
            f'call_{i}: {json.dumps(head, ensure_ascii=False)} args_{i} "}}"',
            f"args_{i}: %json {json.dumps(_schema(tool.parameters if tool.strict or demanded else ANY))}",
        ]
    if demanded:
        start = [f"start: {opening} body"]
    elif form is not None:
        start = [
            f'start: answer | calls\ncalls: {opening} body ("\\n"? {opening} body)*\nanswer: " "? json',
            f"json: %json {json.dumps(_answer(form))}",
        ]
    else:
        # Lazy: the text ends where the opening is first complete, so no call passes as text.
        before = f"TEXT {opening}" if marks[0] in special else f"/(?s:.*){_pattern(marks[0])}/"
        option = "" if marks[0] in special else "[lazy]"
        start = [f"start: (before body)* TEXT\nbefore{option}: {before}", "TEXT: /(?s:.*)/"]
    return "\n".join([*start, *rules]) + "\n"


def _mark(mark: str, special: Mapping[str, int]) -> str:
    return f"<[{special[mark]}]>" if mark in special else json.dumps(mark, ensure_ascii=False)


def _pattern(mark: str) -> str:
    return re.escape(mark).replace("/", r"\/").replace("\\\n", r"\n").replace("\n", r"\n")


def _answer(form: OutputFormat) -> dict[str, Any]:
    """Return the schema of a format beside tools; raises DecodingError for a format that is not JSON."""
    if form.kind not in ("json_object", "json_schema"):
        raise DecodingError(
            f"response_format: {form.kind} cannot be combined with tools; leave one of them out",
            "response_format",
        )
    schema: dict[str, Any] = ANY if form.kind == "json_object" else json.loads(form.text)
    return {**schema, "x-guidance": {"whitespace_flexible": False}}


def _schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Use the spaces that json.dumps writes, as in every call a model was trained on."""
    return {
        **parameters,
        "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "},
    }
