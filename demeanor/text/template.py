"""The interface of chat templates: messages to tokens and back; and the token builder of the built-in ones.

In: messages and tools. Out: token ids with the mask of trained ones; events from generated tokens. A template
decides which tokens carry loss (an assistant's text and its end) and ensures that no content can forge a
marker. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from demeanor.core.errors import DataError
from demeanor.core.types import Messages, Text, ToolCalled, ToolSpec
from demeanor.text.tokenizer import Tokenizer

TEMPLATES = "demeanor.text.templates"
NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class Rendered(NamedTuple):
    """Token ids of a conversation; `trained[i]` is True if token i carries loss."""

    tokens: list[int]
    trained: list[bool]


class Reader(Protocol):
    """Parses generated tokens, one at a time, into events; the end-of-turn token is not fed."""

    def feed(self, token: int, text: str) -> list[Text | ToolCalled]:
        """Take a token and the text that became certain with it (possibly ""); return the events so far."""

    def finish(self) -> list[Text | ToolCalled]:
        """Return events for the text that was held back."""


class Template(Protocol):
    """A format of conversations; `stop_tokens` and `stop` end an answer, `jinja` is the same for
    transformers."""

    name: str
    stop_tokens: frozenset[int]
    stop: tuple[str, ...]
    jinja: str

    def render(
        self,
        messages: Messages,
        tools: Sequence[ToolSpec] = (),
        *,
        generate: bool = False,
        trained_from: int = 0,
        kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> Rendered:
        """Write a conversation; `generate` opens the next answer, assistant messages from `trained_from` on
        are trained.

        `kwargs` are further arguments of a jinja template; raises DataError for one that the template does
        not read. The prompt of each assistant message (rendered with `generate`) is a prefix of the whole.
        """

    def reader(self) -> Reader:
        """Return a new reader of one assistant turn."""


def refuse_kwargs(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise DataError if a row has arguments for a template that takes none."""
    if kwargs:
        raise DataError(
            f"template {name}: takes no chat_template_kwargs, got {', '.join(sorted(kwargs))}; "
            "use `template: model` or a .jinja file that reads them, or leave the column out"
        )


class TokenBuilder:
    """The tokens of a conversation so far, BOS included, with their trained flags."""

    def __init__(self, tokenizer: Tokenizer, plain: Iterable[str] = ()) -> None:
        """`plain` are the markers without a special token in this tokenizer: contents may not spell them."""
        self._tokenizer, self._plain = tokenizer, tuple(plain)
        self._tokens = list(tokenizer.start)
        self._trained = [False] * len(self._tokens)
        self._bare = True  # at the start or directly after a special token

    def add_marker(self, marker: str, trained: bool = False) -> None:
        """Add a marker: its special token, or its text."""
        if marker not in self._tokenizer.special:
            self.add_text(marker, trained)
            return
        self.add_token(self._tokenizer.special[marker], trained)

    def add_text(self, text: str, trained: bool = False) -> None:
        """Add text of the template itself, tokenized as Hugging Face tokenizes it in the whole text."""
        self._add(self._tokenizer.encode(text) if self._bare else self._tokenizer.joined(text), trained)
        self._bare = self._bare and not text

    def add_content(self, text: str, trained: bool = False) -> None:
        """Add a message's content, tokenized alone: its first word has the token it has within a sentence."""
        self._add(self._tokenizer.encode(neutral(text, self._plain)), trained)
        self._bare = self._bare and not text

    def add_token(self, token: int, trained: bool = False) -> None:
        """Add a special token by its id."""
        self._add([token], trained)
        self._bare = self._tokenizer.prefix_after_special

    def rendered(self) -> Rendered:
        """Return all tokens and flags."""
        return Rendered(self._tokens, self._trained)

    def _add(self, tokens: list[int], trained: bool) -> None:
        self._tokens += tokens
        self._trained += [trained] * len(tokens)


def neutral(text: str, markers: Iterable[str]) -> str:
    """Break up every marker in a text by a space after the marker's first character."""
    for marker in markers:
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text


def text_markers(tokenizer: Tokenizer, markers: Iterable[str]) -> tuple[str, ...]:
    """Return the markers for which this tokenizer has no special token."""
    return tuple(m for m in markers if m not in tokenizer.special)
