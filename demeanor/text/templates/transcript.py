"""`transcript`: plain lines a base model has read: "Visitor: When?", "Clerk: 12."; no special token but bos and eos.

A system prompt is the first line (later ones are "Rule:" lines), retrieved text a "Notice:", a tool's result a "Result:" line,
offered tools a "Tools:" line and calls "Call: {JSON}" lines after the Clerk's. A line of content that begins with such a label
is indented by a space, so no content can speak for somebody else. The answer ends at the next label, or with eos.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demeanor.core.types import Messages, ToolSpec
from demeanor.text.template import NO_KWARGS, Pieces, Reader, Rendered, refuse_kwargs
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
        self._space = (
            "" if tokenizer.prefix else " "
        )  # a prefixing tokenizer puts the space after the label itself
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
        pieces = Pieces(self._tokenizer)
        lines = _Lines(pieces)
        first_line = bool(messages) and messages[0].role in ("system", "developer")
        if first_line:
            pieces.content(_indented(messages[0].content))
            lines.started = True
        if tools:
            lines.label(TOOLS)
            pieces.content(self._space + _indented(" ".join(signature(t) for t in tools)))
        for i, message in enumerate(messages):
            if first_line and i == 0:
                continue
            lines.label(LABELS[message.role])
            trained = message.role == "assistant" and i >= trained_from
            pieces.content(self._space + _indented(message.content) if message.content else "", trained)
            for call in message.tool_calls:
                pieces.words(f"\n{CALL}", trained)
                pieces.content(self._space + _indented(call_text(call)), trained)
            lines.ends_turn = trained
        if generate:
            lines.label(LABELS["assistant"])
        elif messages and messages[-1].role == "assistant":
            pieces.end(self._tokenizer.eos_id, lines.ends_turn)
        return pieces.rendered()

    def reader(self) -> Reader:
        return CallReader(f"\n{CALL}", skip_space=bool(self._space))


class _Lines:
    """Starts lines: the label after an assistant's turn is what ends that turn, so it is trained with it."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces, self.started, self.ends_turn = pieces, False, False

    def label(self, label: str) -> None:
        self._pieces.words(f"\n{label}" if self.started else label, self.ends_turn)
        self.started, self.ends_turn = True, False


def _indented(text: str) -> str:
    return _FORGED.sub("\n ", text)


def template(tokenizer: Tokenizer) -> Transcript:
    """The template for this tokenizer."""
    return Transcript(tokenizer)
