"""Messages to tokens and back: what every chat template can do, and how one is found by name.

In: messages and tools. Out: ids with the mask of trained ones; from generated tokens, events. A template decides which tokens
carry loss (what an assistant wrote and what ends its turn) and that no content can forge a marker. It never sees a model.
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
    """Ids of a conversation; `trained[i]`: token i carries loss."""

    tokens: list[int]
    trained: list[bool]


class Reader(Protocol):
    """Generated tokens, one at a time, to events; the end-of-turn marker is not fed."""

    def feed(self, token: int, text: str) -> list[Text | ToolCalled]:
        """Take a token and the text that became certain with it (possibly empty) and return what can be told so far."""
        ...

    def finish(self) -> list[Text | ToolCalled]:
        """Return what was held back."""
        ...


class Template(Protocol):
    """One way to write a conversation; `stop_tokens` and `stop` end an answer, `jinja` says the same for transformers."""

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
        """Write a conversation; `generate` opens the next answer, assistant messages from `trained_from` on are trained.

        `kwargs` are further arguments of a jinja template; raises DataError for one that the template does not read.
        The prompt of every assistant message (render of what precedes it, with `generate`) is a prefix of the whole.
        """
        ...

    def reader(self) -> Reader:
        """Return a fresh reader of one assistant turn."""
        ...


def refuse_kwargs(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise DataError if a row brings arguments for a template that takes none."""
    if kwargs:
        raise DataError(
            f"template {name}: takes no chat_template_kwargs, got {', '.join(sorted(kwargs))}; "
            "use `template: model` or a .jinja file that reads them, or leave the column out"
        )


class Pieces:
    """Tokens of a conversation so far, bos included."""

    def __init__(self, tokenizer: Tokenizer, plain: Iterable[str] = ()) -> None:
        """`plain` are the markers that are only text for this tokenizer: contents may not spell them."""
        self._tokenizer, self._plain = tokenizer, tuple(plain)
        self._tokens = list(tokenizer.start)
        self._trained = [False] * len(self._tokens)
        self._bare = True  # nothing yet, or a special token, stands right before

    def mark(self, marker: str, trained: bool = False) -> None:
        """Add a marker: its special id, or its text."""
        if marker not in self._tokenizer.special:
            self.words(marker, trained)
            return
        self.end(self._tokenizer.special[marker], trained)

    def words(self, text: str, trained: bool = False) -> None:
        """Add text of the template itself, tokenized as Hugging Face tokenizes it in the whole text."""
        self._add(self._tokenizer.encode(text) if self._bare else self._tokenizer.joined(text), trained)
        self._bare = self._bare and not text

    def content(self, text: str, trained: bool = False) -> None:
        """Add somebody's text: always tokenized alone, so its first word is the token it is in the middle of a sentence."""
        self._add(self._tokenizer.encode(neutral(text, self._plain)), trained)
        self._bare = self._bare and not text

    def end(self, token: int, trained: bool = False) -> None:
        """Add a special token by its id."""
        self._add([token], trained)
        self._bare = self._tokenizer.prefix_after_special

    def rendered(self) -> Rendered:
        return Rendered(self._tokens, self._trained)

    def _add(self, tokens: list[int], trained: bool) -> None:
        self._tokens += tokens
        self._trained += [trained] * len(tokens)


def neutral(text: str, markers: Iterable[str]) -> str:
    """Break up every marker that a text spells, by a space after the marker's first character."""
    for marker in markers:
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text


def text_markers(tokenizer: Tokenizer, markers: Iterable[str]) -> tuple[str, ...]:
    """Those markers which this tokenizer has no special token for."""
    return tuple(m for m in markers if m not in tokenizer.special)
