"""`chatml`: <|im_start|>role, a line break, content, <|im_end|>; the format of most open assistants.

Tools are listed as JSON in the system turn and called as <tool_call> JSON </tool_call>; roles are written by
name, also `data` (retrieved text) and `tool` (results). Without a special token <|im_start|> is plain text,
which contents may not spell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.core.types import Message, Messages, ToolCall, ToolSpec, numbered, tool_json
from demeanor.text.template import (
    NO_KWARGS,
    Reader,
    Rendered,
    TokenBuilder,
    is_trained,
    neutral,
    refuse_kwargs,
    text_markers,
)
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_calls import CallReader, call_text

START, END, CALL, CALLED = "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"
INTRO = '# Tools\nCall a function by writing {"name": ..., "arguments": {...}} between '


class ChatML:
    """The template for one tokenizer."""

    name = "chatml"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._plain = text_markers(tokenizer, (START, END, CALL, CALLED))
        self.stop_tokens = frozenset({tokenizer.eos_id, tokenizer.special.get(END, tokenizer.eos_id)})
        self.stop = (END,) if END in self._plain else ()
        gap, bos = " " if tokenizer.prefix else "", "{{- bos_token -}}" if tokenizer.start else ""
        source = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
        self.jinja = f"{{%- set gap = '{gap}' -%}}{{%- set intro = {json.dumps(INTRO)} -%}}{bos}" + source

    def render(
        self,
        messages: Messages,
        tools: Sequence[ToolSpec] = (),
        *,
        generate: bool = False,
        trained_from: int = 0,
        kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> Rendered:
        refuse_kwargs(self.name, kwargs)
        builder = TokenBuilder(self._tokenizer, self._plain)
        if tools and not (messages and messages[0].role == "system"):
            self._turn(builder, Message("system", ""), tools)
        for i, message in enumerate(numbered(messages)):
            if message.role == "assistant":
                self._answer(builder, message, is_trained(messages, i, trained_from))
            else:
                self._turn(builder, message, tools if i == 0 and message.role == "system" else ())
        if generate:
            self._open(builder, "assistant")
        return builder.rendered()

    def reader(self) -> Reader:
        return CallReader(CALL, CALLED)

    def _open(self, builder: TokenBuilder, role: str) -> None:
        builder.add_marker(START)
        builder.add_text(f"{role}\n")

    def _turn(self, builder: TokenBuilder, message: Message, tools: Sequence[ToolSpec]) -> None:
        self._open(builder, message.role)
        builder.add_content(message.content)
        if tools:
            builder.add_text("\n\n" + INTRO if message.content else INTRO)
            builder.add_marker(CALL)
            builder.add_text(" and ")
            builder.add_marker(CALLED)
            builder.add_text(".\n")
            builder.add_content("\n".join(json.dumps(tool_json(t), ensure_ascii=False) for t in tools))
        builder.add_marker(END)
        builder.add_text("\n")

    def _answer(self, builder: TokenBuilder, message: Message, trained: bool) -> None:
        self._open(builder, "assistant")
        # A call is found by its text, whatever tokens spell it, so it is broken up even if it has a token.
        builder.add_content(neutral(message.content, (CALL,)), trained)
        for i, call in enumerate(message.tool_calls):
            if message.content or i:
                builder.add_text("\n", trained)
            builder.add_marker(CALL, trained)
            builder.add_text(f"\n{self._written(call)}\n", trained)
            builder.add_marker(CALLED, trained)
        builder.add_marker(END, trained)
        builder.add_text("\n")

    def _written(self, call: ToolCall) -> str:
        """Return the JSON of a call; markers inside it are escaped as JSON escapes, which keeps their
        meaning."""
        text = call_text(call)
        for marker in {*self._plain, CALL, CALLED}:
            text = text.replace(marker, f"\\u003c{marker[1:]}")
        return text


template = ChatML
