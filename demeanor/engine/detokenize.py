"""Tokens to text, one at a time: half a character is held back until it is whole, half a stop string until it is decided.

In: a function that decodes a tuple of tokens. Out: pieces of text whose concatenation is the decoding of the whole.
Knows nothing of tokenizers (byte-level and byte-fallback ones both work), requests or threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

Decode = Callable[[tuple[int, ...]], str]

_UNKNOWN = "\ufffd"  # what decoders write for bytes that are no character, or not yet one
_UNSURE = 3  # a character has at most 4 bytes, so at most 3 trailing marks can still become one
_WINDOW, _KEPT = (
    24,
    16,
)  # tokens; 3 marks stand for at most 9 bytes, and 3 more bytes find the next character's start


class Detokenizer:
    """The text of a growing list of tokens; only the last few tokens are decoded again at each step."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: tuple[int, ...] = ()
        self._settled = 0  # the first tokens of the window, kept only as context: a decoder may treat the first token apart
        self._given = ""  # the part of the window's text that has been handed out

    def feed(self, token: int) -> str:
        """Add a token and return the text that is now certain."""
        self._window += (token,)
        text = self._decode(self._window)
        if not text.startswith(
            self._given
        ):  # byte fallback: an unfinished character spoils its whole run of bytes
            return self._give_up() if len(self._window) > _WINDOW else ""
        marks = len(text) - len(text.rstrip(_UNKNOWN))
        # with byte fallback an unfinished character spoils all bytes before it in its run: as long as the window allows, wait
        undecided = marks if len(self._window) <= _WINDOW else min(marks, _UNSURE)
        sure = max(len(self._given), len(text) - undecided)
        new = text[len(self._given) : sure]
        if sure == len(text):
            self._slide()
        else:
            self._given = text[:sure]
            if len(self._window) > _WINDOW:
                self._cut(len(text) - sure)
        return new

    def finish(self) -> str:
        """Return what was held back; an unfinished character becomes U+FFFD, as in the decoding of the whole."""
        return self._added(self._window)

    def preview(self, token: int) -> str:
        """Return the text that `token` would add here, nothing held back; for showing alternatives."""
        after, before = self._decode((*self._window, token)), self._decode(self._window)
        return after[len(before) :] if after.startswith(before) else self._decode((token,))

    def _added(self, window: tuple[int, ...]) -> str:
        text = self._decode(window)
        return (
            text[len(self._given) :]
            if text.startswith(self._given)
            else self._decode(window[self._settled :])
        )

    def _slide(self) -> None:
        """Everything is handed out: the tokens since the last time become the context of the next."""
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._given = self._decode(self._window)

    def _cut(self, held: int) -> None:
        """Shorten a window of garbage bytes; its last `held` marks stay undecided."""
        self._window, self._settled = self._window[-_KEPT:], 0
        text = self._decode(self._window)
        self._given = text[: len(text) - held]

    def _give_up(self) -> str:
        new = self._added(self._window)
        self._slide()
        return new


class Scan(NamedTuple):
    """A scanned text: `text` may be shown, `held` may become a stop string, `stopped`: one was found right after `text`."""

    text: str
    held: str
    stopped: bool


def scan(text: str, stops: Sequence[str]) -> Scan:
    """Cut `text` (what was held before included) at the stop string that is complete first; of two, the one that began first.

    However a text is split into pieces, the result is the same: a match is decided by where it ends.
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    if found:
        return Scan(text[: min(found)[1]], "", True)
    for size in range(min(len(text), max(map(len, stops), default=1) - 1), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return Scan(text[:-size], text[-size:], False)
    return Scan(text, "", False)
