"""`chatml`: <|im_start|>role, a line break, content, <|im_end|>: the form most open assistants use.

Tools are listed as JSON in the system turn and called as <tool_call> JSON </tool_call>; roles are written by name (also `data`
for retrieved text, `tool` for results). Where <|im_start|> is no special token it is plain text and contents may not spell it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.core.types import Message, Messages, ToolCall, ToolSpec
from demeanor.text.template import NO_KWARGS, Pieces, Reader, Rendered, neutral, refuse_kwargs, text_markers
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_calls import CallReader, call_text, function

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
        pieces = Pieces(self._tokenizer, self._plain)
        if tools and not (messages and messages[0].role == "system"):
            self._turn(pieces, Message("system", ""), tools)
        for i, message in enumerate(messages):
            if message.role == "assistant":
                self._answer(pieces, message, i >= trained_from)
            else:
                self._turn(pieces, message, tools if i == 0 and message.role == "system" else ())
        if generate:
            self._open(pieces, "assistant")
        return pieces.rendered()

    def reader(self) -> Reader:
        return CallReader(CALL, CALLED)

    def _open(self, pieces: Pieces, role: str) -> None:
        pieces.mark(START)
        pieces.words(f"{role}\n")

    def _turn(self, pieces: Pieces, message: Message, tools: Sequence[ToolSpec]) -> None:
        self._open(pieces, message.role)
        pieces.content(message.content)
        if tools:
            pieces.words("\n\n" + INTRO if message.content else INTRO)
            pieces.mark(CALL)
            pieces.words(" and ")
            pieces.mark(CALLED)
            pieces.words(".\n")
            pieces.content("\n".join(json.dumps(function(t), ensure_ascii=False) for t in tools))
        pieces.mark(END)
        pieces.words("\n")

    def _answer(self, pieces: Pieces, message: Message, trained: bool) -> None:
        self._open(pieces, "assistant")
        # A call is found by its text, whatever tokens spell it: so it is broken up here even where it has a token.
        pieces.content(neutral(message.content, (CALL,)), trained)
        for i, call in enumerate(message.tool_calls):
            if message.content or i:
                pieces.words("\n", trained)
            pieces.mark(CALL, trained)
            pieces.words(f"\n{self._written(call)}\n", trained)
            pieces.mark(CALLED, trained)
        pieces.mark(END, trained)
        pieces.words("\n")

    def _written(self, call: ToolCall) -> str:
        """The JSON of a call; a marker spelled inside it is escaped as JSON escapes, so it still means the same."""
        text = call_text(call)
        for marker in {*self._plain, CALL, CALLED}:
            text = text.replace(marker, f"\\u003c{marker[1:]}")
        return text


def template(tokenizer: Tokenizer) -> ChatML:
    """The template for this tokenizer."""
    return ChatML(tokenizer)
