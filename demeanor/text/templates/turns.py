"""`turns`: one special token per role, no line breaks: <|user|> When?<|end|><|assistant|> 12.<|end|>

Tools are listed in the system turn after <|tool|> as name(parameters); a call is <|call|> and JSON in the
assistant's turn. Retrieved text is a <|data|> turn. Markers without a special token are plain text, which
contents may not spell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.core.types import Messages, ToolSpec
from demeanor.text.template import (
    NO_KWARGS,
    Reader,
    Rendered,
    TokenBuilder,
    is_trained,
    refuse_kwargs,
    text_markers,
)
from demeanor.text.tokenizer import END, Tokenizer
from demeanor.text.tool_calls import CallReader, call_text, signature

CALL, TOOL, SYSTEM, ASSISTANT = "<|call|>", "<|tool|>", "<|system|>", "<|assistant|>"
MARKERS = (END, CALL, TOOL, SYSTEM, ASSISTANT, "<|developer|>", "<|user|>", "<|data|>")


class Turns:
    """The template for one tokenizer."""

    name = "turns"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._plain = text_markers(tokenizer, MARKERS)
        self.stop_tokens = frozenset({tokenizer.eos_id, tokenizer.special.get(END, tokenizer.eos_id)})
        self.stop = (END,) if END in self._plain else ()
        # Special tokens may add the space themselves.
        gap = " " if tokenizer.prefix and (self._plain or not tokenizer.prefix_after_special) else ""
        bos = "{{- bos_token -}}" if tokenizer.start else ""
        source = Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")
        self.jinja = f"{{%- set gap = '{gap}' -%}}{bos}" + source

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
        listed = " ".join(signature(t) for t in tools)
        if listed and not (messages and messages[0].role == "system"):
            self._turn(builder, SYSTEM, "", listed)
        for i, message in enumerate(messages):
            if message.role != "assistant":
                shown = listed if message.role == "system" and i == 0 else ""
                self._turn(builder, f"<|{message.role}|>", message.content, shown)
                continue
            trained = is_trained(messages, i, trained_from)
            builder.add_marker(ASSISTANT)
            builder.add_content(message.content, trained)
            for call in message.tool_calls:
                builder.add_marker(CALL, trained)
                builder.add_content(call_text(call), trained)
            builder.add_marker(END, trained)
        if generate:
            builder.add_marker(ASSISTANT)
        return builder.rendered()

    def reader(self) -> Reader:
        return CallReader(CALL, opening_id=self._tokenizer.special.get(CALL))

    def _turn(self, builder: TokenBuilder, marker: str, content: str, tools: str = "") -> None:
        builder.add_marker(marker)
        builder.add_content(content)
        if tools:
            builder.add_marker(TOOL)
            builder.add_content(tools)
        builder.add_marker(END)


template = Turns
