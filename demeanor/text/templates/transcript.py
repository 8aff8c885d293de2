"""`transcript`: plain lines for base models: "Visitor: When?", "Clerk: 12."; no special tokens but BOS and
EOS.

A system prompt is the first line (later ones are "Rule:" lines), retrieved text a "Notice:", a tool's result
a "Result:" line, offered tools a "Tools:" line, calls "Call: {JSON}" lines after the Clerk's. Content lines
that begin with a label are indented by a space, so no content can forge a speaker. The answer ends at the
next label, or with EOS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.core.types import Messages, ToolSpec
from demeanor.text.template import NO_KWARGS, Reader, Rendered, TokenBuilder, is_trained, refuse_kwargs
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_calls import CallReader, call_text, signature

LABELS = {
    "user": "Visitor:",
    "assistant": "Clerk:",
    "data": "Notice:",
    "tool": "Result:",
    "system": "Rule:",
    "developer": "Rule:",
}
CALL, TOOLS = "Call:", "Tools:"
_FORGED = re.compile(rf"\n(?=({'|'.join([*LABELS.values(), CALL, TOOLS])}))")


class Transcript:
    """The template for one tokenizer."""

    name = "transcript"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._space = "" if tokenizer.prefix else " "  # a prefixing tokenizer adds it after a label itself
        self.stop_tokens = frozenset({tokenizer.eos_id})
        self.stop = tuple(f"\n{label}" for label in dict.fromkeys([*LABELS.values(), TOOLS]))
        bos = "{{- bos_token -}}" if tokenizer.start else ""
        self.jinja = bos + Path(__file__).with_suffix(".jinja").read_text(encoding="utf-8")

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
        builder = TokenBuilder(self._tokenizer)
        lines = _Lines(builder)
        first_line = bool(messages) and messages[0].role in ("system", "developer")
        if first_line:
            builder.add_content(_indented(messages[0].content))
            lines.started = True
        if tools:
            lines.label(TOOLS)
            builder.add_content(self._space + _indented(" ".join(signature(t) for t in tools)))
        for i, message in enumerate(messages):
            if first_line and i == 0:
                continue
            lines.label(LABELS[message.role])
            trained = is_trained(messages, i, trained_from)
            builder.add_content(self._space + _indented(message.content) if message.content else "", trained)
            for call in message.tool_calls:
                builder.add_text(f"\n{CALL}", trained)
                builder.add_content(self._space + _indented(call_text(call)), trained)
            lines.ends_turn = trained
        if generate:
            lines.label(LABELS["assistant"])
        elif messages and messages[-1].role == "assistant":
            builder.add_token(self._tokenizer.eos_id, lines.ends_turn)
        return builder.rendered()

    def reader(self) -> Reader:
        return CallReader(f"\n{CALL}", skip_space=bool(self._space))


class _Lines:
    """Starts lines; the label after an assistant's turn ends that turn, so it is trained with it."""

    def __init__(self, builder: TokenBuilder) -> None:
        self._builder, self.started, self.ends_turn = builder, False, False

    def label(self, label: str) -> None:
        self._builder.add_text(f"\n{label}" if self.started else label, self.ends_turn)
        self.started, self.ends_turn = True, False


def _indented(text: str) -> str:
    return _FORGED.sub("\n ", text)


template = Transcript
