"""A conversation under construction: markers as special ids where the tokenizer has them, as text where not; content as text.

In: markers, words of the template, contents. Out: ids with the trained mask. Contents are encoded on their own, so nothing in
them can become a special id, and a marker that must be text is broken up wherever a content spells it.
"""

from __future__ import annotations

from collections.abc import Iterable

from demeanor.text.template import Rendered
from demeanor.text.tokenizer import Tokenizer


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
