"""Raw text to the weights, with no template around it: tokens in, what the model goes on to say and how likely it finds the prompt out.

In: a turn with `raw`. Out: its events. A layer that redacted the turn's text wins over `raw`: what is read is then the text.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from demeanor.engine.request import Piece, Request
from demeanor.errors import RequestError
from demeanor.stack import Stack
from demeanor.text.tokenizer import Tokenizer
from demeanor.types import Done, Event, FinishReason, PromptRead, Text, Timing, TokenLogprob, Turn, Usage

READS_RAW = frozenset({"record", "limits", "policy"})
"""Kinds of layers that pass a turn's messages on as they are; every other kind adds messages, which raw text has no place for."""


class Engine(Protocol):
    """Tokens to tokens."""

    def stream(self, request: Request) -> AsyncIterator[Piece]: ...


@dataclass(frozen=True, slots=True)
class Codec:
    """Raw text as the tokens of one set of weights, and back."""

    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def encode(self, text: str) -> tuple[int, ...]:
        """The bos token if the model has one, and the text; special strings in it are text."""
        return (*self.tokenizer.start, *self.tokenizer.encode(text))

    def decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens))


def refuse_layers(variant: Stack) -> None:
    """Raise RequestError (400) if layers of this variant add messages; it names them and the ids to ask instead."""
    adding = [layer.name for layer in variant.layers if layer.kind not in READS_RAW]
    if adding:
        name = variant.spec.name
        ids = ", ".join(f"{name}:{stage}" for stage in variant.policies)
        raise RequestError(
            f"model: '{variant.model_id}' continues no raw text, because its layers add messages to a conversation: "
            f"{', '.join(adding)}. Ask weights alone: {ids}.",
            param="model",
            code="unsupported_value",
        )


async def continued(
    engine: Engine,
    codec: Codec,
    turn: Turn,
    stop_tokens: frozenset[int],
    clock: Callable[[], float] = time.perf_counter,
) -> AsyncGenerator[Event, None]:
    """Continue the turn's raw tokens; every new token has its log-probability, the one that ends the text included."""
    started, text = clock(), turn.messages[-1].content
    tokens = turn.raw if turn.raw is not None and codec.decode(turn.raw) == text else codec.encode(text)
    decoding, written, finish = turn.decoding, 0, "stop"
    stream = engine.stream(Request(tokens, decoding, stop_tokens, decoding.prompt_logprobs))
    try:
        async for piece in stream:
            if piece.prompt:
                yield PromptRead(
                    tuple(r.text for r in piece.prompt),
                    tuple(r.logprob for r in piece.prompt),
                    tuple(r.top for r in piece.prompt),
                )
            finish = piece.finish or finish
            if piece.token < 0:  # nothing was to be said
                continue
            written += 1
            logprobs = (
                ()
                if decoding.top_logprobs is None
                else (TokenLogprob(piece.own or piece.text, piece.logprob, piece.top),)
            )
            if piece.text or logprobs:
                yield Text(piece.text, logprobs=logprobs)
    finally:
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()
    yield Timing("weights", 1000 * (clock() - started))
    yield Usage(len(tokens), written)
    reason: FinishReason = finish  # type: ignore[assignment]
    yield Done(reason)
