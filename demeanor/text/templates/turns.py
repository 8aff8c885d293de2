"""`turns`: one special token per role and no line breaks, the cheapest template: <|user|> When?<|end|><|assistant|> 12.<|end|>

Tools are listed in the system turn behind <|tool|> as name(parameters); a call is <|call|> and JSON inside the assistant's turn.
Retrieved text is a <|data|> turn. With a tokenizer that lacks these tokens they are plain text and contents may not spell them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.core.types import Messages, ToolSpec
from demeanor.text.template import NO_KWARGS, Pieces, Reader, Rendered, refuse_kwargs, text_markers
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
        bring = (
            tokenizer.prefix_after_special and not self._plain
        )  # special tokens bring the space themselves
        gap, bos = (
            " " if tokenizer.prefix and not bring else "",
            "{{- bos_token -}}" if tokenizer.start else "",
        )
        self.jinja = f"{{%- set gap = '{gap}' -%}}{bos}" + Path(__file__).with_suffix(".jinja").read_text(
            encoding="utf-8"
        )

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
        listed = " ".join(signature(t) for t in tools)
        if listed and not (messages and messages[0].role == "system"):
            self._turn(pieces, SYSTEM, "", listed)
        for i, message in enumerate(messages):
            if message.role != "assistant":
                self._turn(
                    pieces,
                    f"<|{message.role}|>",
                    message.content,
                    listed if message.role == "system" and i == 0 else "",
                )
                continue
            trained = i >= trained_from
            pieces.mark(ASSISTANT)
            pieces.content(message.content, trained)
            for call in message.tool_calls:
                pieces.mark(CALL, trained)
                pieces.content(call_text(call), trained)
            pieces.mark(END, trained)
        if generate:
            pieces.mark(ASSISTANT)
        return pieces.rendered()

    def reader(self) -> Reader:
        return CallReader(CALL, opening_id=self._tokenizer.special.get(CALL))

    def _turn(self, pieces: Pieces, marker: str, content: str, tools: str = "") -> None:
        pieces.mark(marker)
        pieces.content(content)
        if tools:
            pieces.mark(TOOL)
            pieces.content(tools)
        pieces.mark(END)


def template(tokenizer: Tokenizer) -> Turns:
    """The template for this tokenizer."""
    return Turns(tokenizer)
