"""What goes into an engine and what comes out of it: a prompt of tokens with its decoding, and one piece per new token."""

from __future__ import annotations

from dataclasses import dataclass

from demeanor.types import Decoding, FinishReason


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue until `stop_tokens`, a stop string of `decoding`, or its max_tokens."""

    tokens: tuple[int, ...]
    decoding: Decoding
    stop_tokens: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token and the text that became certain with it; the last one of a request has a `finish`.

    `text` may be "" while half a character or half a stop string is held back; the stop itself is never in it.
    `logprob` (nats) is of the unmodified distribution. `top` and `own` (the token's own text, nothing held back) are
    filled when the request asked for top_logprobs.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    finish: FinishReason | None = None
    own: str = ""
