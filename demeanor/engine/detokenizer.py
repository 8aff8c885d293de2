"""Incremental detokenization: converts a growing list of tokens to text, one token at a time.

In: a function that decodes a tuple of tokens. Out: pieces of text whose concatenation is the decoding of all
tokens. Incomplete characters and incomplete stop strings are held back until they are decided. Works with
byte-level and byte-fallback tokenizers. Knows nothing of requests or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Decode = Callable[[tuple[int, ...]], str]

_UNKNOWN = "\ufffd"  # decoders write it for bytes that do not form a character (yet)
_UNSURE = 3  # a character has at most 4 bytes, so at most 3 trailing marks can still become one
# Tokens. 3 marks stand for at most 9 bytes, and 3 more bytes find the start of the next character.
_WINDOW, _KEPT = 24, 16


class Detokenizer:
    """The text of a growing list of tokens; each step decodes only the last few tokens again."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: tuple[int, ...] = ()
        # The first tokens of the window are context only: a decoder may treat the first token differently.
        self._num_context = 0
        self._emitted = ""  # the part of the window's text that has been returned

    def feed(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        self._window += (token,)
        text = self._decode(self._window)
        if not text.startswith(self._emitted):
            # Byte fallback: an incomplete character changes the text of its whole run of bytes.
            return self._flush() if len(self._window) > _WINDOW else ""
        marks = len(text) - len(text.rstrip(_UNKNOWN))
        # With byte fallback an incomplete character spoils the bytes before it: wait while the window allows.
        undecided = marks if len(self._window) <= _WINDOW else min(marks, _UNSURE)
        certain = max(len(self._emitted), len(text) - undecided)
        new = text[len(self._emitted) : certain]
        if certain == len(text):
            self._slide()
            return new
        self._emitted = text[:certain]
        if len(self._window) > _WINDOW:  # a window of garbage bytes; its last marks stay undecided
            self._window, self._num_context = self._window[-_KEPT:], 0
            shortened = self._decode(self._window)
            self._emitted = shortened[: len(shortened) - (len(text) - certain)]
        return new

    def finish(self) -> str:
        """Return the text held back; an incomplete character becomes U+FFFD, as in the decoding of all
        tokens."""
        text = self._decode(self._window)
        if text.startswith(self._emitted):
            return text[len(self._emitted) :]
        return self._decode(self._window[self._num_context :])

    def preview(self, token: int) -> str:
        """Return the text that `token` would add here, with nothing held back."""
        after, before = self._decode((*self._window, token)), self._decode(self._window)
        return after[len(before) :] if after.startswith(before) else self._decode((token,))

    def _slide(self) -> None:
        """Drop the old context; the tokens since then become the context of the next ones."""
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        self._emitted = self._decode(self._window)

    def _flush(self) -> str:
        new = self.finish()
        self._slide()
        return new


class Scan(NamedTuple):
    """Result of a scan: `text` may be shown, `held` may become a stop string, `stopped` if one follows
    `text`."""

    text: str
    held: str
    stopped: bool


def scan(text: str, stops: Sequence[str]) -> Scan:
    """Cut `text` (including text held before) at the first complete stop string; of two, at the earlier
    start.

    The result does not depend on how the text is split into pieces: a match is decided by where it ends.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return Scan(text[: min(found)[1]], "", True)
    for size in range(min(len(text), max(map(len, stops), default=1) - 1), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return Scan(text[:-size], text[-size:], False)
    return Scan(text, "", False)
