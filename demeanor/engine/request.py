"""What goes into an engine and what comes out of it: a prompt of tokens with its decoding, and one piece per new token."""

from __future__ import annotations

from dataclasses import dataclass

from demeanor.types import Decoding, FinishReason


def draftable(decoding: Decoding) -> bool:
    """Does it say the likeliest token always, so that a draft can be checked?"""
    changed = decoding.logit_bias or decoding.presence_penalty or decoding.frequency_penalty
    return decoding.temperature == 0 and decoding.form is None and not changed


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue until `stop_tokens`, a stop string of `decoding`, or its max_tokens.

    `prompt_logprobs`: also tell how likely each prompt token was, with so many alternatives (0 to 20); None: do not. Only with it
    may max_tokens be 0: nothing is said then. `drafts`: answers it may well give, which are checked many tokens at a time instead of
    written one by one (speculative decoding, Leviathan et al. 2023, greedy case); what is said never depends on them.
    """

    tokens: tuple[int, ...]
    decoding: Decoding
    stop_tokens: frozenset[int] = frozenset()
    prompt_logprobs: int | None = None
    drafts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """One prompt token: its text, its log-probability (nats; None for the first, which nothing comes before), and alternatives."""

    token: int
    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token and the text that became certain with it; the last one of a request has a `finish`.

    `text` may be "" while half a character or half a stop string is held back; the stop itself is never in it.
    `logprob` (nats) is of the unmodified distribution. `top` and `own` (the token's own text, nothing held back) are
    filled when the request asked for top_logprobs. `prompt` is on the first piece of a request that asked for prompt_logprobs,
    one Read per prompt token. With max_tokens 0 there is one piece, of `token` -1 and no text.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    finish: FinishReason | None = None
    own: str = ""
    prompt: tuple[Read, ...] = ()
