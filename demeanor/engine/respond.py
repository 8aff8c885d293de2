"""Raw text to the weights, with no template around it: tokens in, what the model goes on to say and how likely it finds the prompt out.

In: a turn with `raw`. Out: its events. A layer that redacted the turn's text wins over `raw`: what is read is then the text.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from demeanor.core.errors import DecodingError
from demeanor.core.types import (
    Decoding,
    Done,
    Event,
    FinishReason,
    PromptRead,
    Respond,
    Text,
    Timing,
    TokenLogprob,
    ToolCalled,
    Turn,
    Usage,
)
from demeanor.engine.drafts import Drafts, topic
from demeanor.engine.local import LocalEngine
from demeanor.engine.scheduler import Piece, Request, draftable
from demeanor.model.llama import Llama
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_grammar import constrain_tool_calls

MOST_AT_ONCE = 32
"""Prompts that `complete_prompts` answers at the same time; more would only cost memory."""


class Engine(Protocol):
    """Tokens to tokens: what a respond needs of an engine."""

    def stream(self, request: Request) -> AsyncIterator[Piece]: ...


@dataclass(frozen=True, slots=True)
class TokenizerCodec:
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


async def raw_completion(
    engine: Engine,
    codec: TokenizerCodec,
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


def model_respond(
    engine: Engine,
    template: Template,
    clock: Callable[[], float] = time.perf_counter,
    *,
    tokenizer: Tokenizer | None = None,
    drafts: Drafts | None = None,
    weights: str = "",
) -> Respond:
    """The innermost respond: render the turn, decode, read the tokens back into events.

    `tokenizer`: for raw turns and demanded calls. `drafts`: what these `weights` have said before, to be checked instead of written.
    """

    special: Mapping[str, int] = tokenizer.special if tokenizer else {}

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        started = clock()
        if turn.raw is not None and tokenizer is not None:
            async with aclosing(
                raw_completion(engine, TokenizerCodec(tokenizer), turn, template.stop_tokens, clock)
            ) as events:
                async for event in events:
                    yield event
            return
        offered = () if turn.tool_choice == "none" else turn.tools
        tokens = tuple(template.render(turn.messages, offered, generate=True).tokens)
        reader = template.reader()
        decoding = constrain_tool_calls(turn.decoding, offered, turn.tool_choice, reader, special)
        by_tools = decoding.form is not turn.decoding.form
        decoding = replace(decoding, stop=(*decoding.stop, *template.stop))
        waiting: list[TokenLogprob] = []
        said, finish, called = list[int](), "stop", False
        asked = topic(weights, turn.messages)
        tried = (
            drafts.of(asked) if drafts and draftable(decoding) else ()
        )  # else none would be looked at, and none confirmed
        stream = engine.stream(Request(tokens, decoding, template.stop_tokens, drafts=tried))
        try:
            async for piece in stream:
                said.append(piece.token)
                if decoding.top_logprobs is not None and piece.token not in template.stop_tokens:
                    waiting.append(TokenLogprob(piece.own or piece.text, piece.logprob, piece.top))
                for event in reader.feed(piece.token, piece.text):
                    called |= isinstance(event, ToolCalled)
                    yield _with_logprobs(event, waiting)
                finish = piece.finish or finish
        except DecodingError as error:
            raise (
                DecodingError(f"tools: {error}", "tools")
                if by_tools and error.param == "response_format"
                else error
            ) from None
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()
        for event in reader.finish():
            called |= isinstance(event, ToolCalled)
            yield _with_logprobs(event, waiting)
        yield Timing("weights", 1000 * (clock() - started))
        yield Usage(len(tokens), len(said))
        if drafts and draftable(decoding):
            drafts.keep(asked, said, tried)
        reason: FinishReason = "tool_calls" if called else finish  # type: ignore[assignment]
        yield Done(reason)

    return respond


def _with_logprobs(event: Event, waiting: list[TokenLogprob]) -> Event:
    if isinstance(event, Text) and waiting:
        event = replace(event, logprobs=tuple(waiting))
        waiting.clear()
    return event


def cached(inner: Respond, key: str, memory: dict[Any, asyncio.Future[list[Event]]]) -> Respond:
    """Share answers between variants whose weights (`key`) read the same turn; only draws that repeat themselves are shared."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        if turn.decoding.temperature > 0 and turn.decoding.seed is None:
            async for event in inner(turn):
                yield event
            return
        offered = tuple(
            (t.name, t.description, json.dumps(t.parameters, sort_keys=True, default=dict), t.strict)
            for t in turn.tools
        )
        cell = (key, turn.messages, turn.decoding, offered, turn.tool_choice, turn.raw)
        if cell not in memory:
            memory[cell] = asyncio.get_running_loop().create_future()
            try:
                memory[cell].set_result([event async for event in inner(turn)])
            except BaseException as error:
                failed = memory.pop(cell)
                failed.set_exception(error)
                failed.exception()  # whoever waits still gets it; nobody waiting is no second error
                raise
        for event in await memory[cell]:
            yield event

    return respond


def with_identity(inner: Respond, variant: str, key: str) -> Respond:
    """Write the variant and its stack key into every turn that passes."""

    def respond(turn: Turn) -> AsyncIterator[Event]:
        return inner(replace(turn, variant=variant, stack_key=key))

    return respond


def unit_vector(engine: LocalEngine, tokens: tuple[int, ...]) -> list[float]:
    mean_D = engine.hidden(tokens).float().mean(0)
    return [float(x) for x in (mean_D / mean_D.norm().clamp_min(1e-12)).tolist()]


async def sampled(
    engine: Engine, template: Template, turn: Turn
) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Draw one answer of bare weights: tokens of the prompt and of the answer, and its log-probability (nats)."""
    prompt = tuple(template.render(turn.messages, turn.tools, generate=True).tokens)
    pieces = [piece async for piece in engine.stream(Request(prompt, turn.decoding, template.stop_tokens))]
    return prompt, tuple(piece.token for piece in pieces), sum(piece.logprob for piece in pieces)


async def answer_logprob(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Log-probability (nats) of an answer after a prompt; nothing is generated."""
    asked = Request((*prompt, *answer), Decoding(0.0, max_tokens=0), prompt_logprobs=0)
    (read,) = [piece async for piece in engine.stream(asked)]
    return sum(token.logprob or 0.0 for token in read.prompt[len(prompt) :])


def complete_prompts(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
) -> list[list[Piece]]:
    """Let a model that trains answer all prompts at once; the n-th prompt has seed n."""
    room = max(len(prompt) for prompt in prompts) + decoding.max_tokens
    engine = LocalEngine(model, tokenizer, num_slots=min(len(prompts), MOST_AT_ONCE), max_context=room)
    try:
        return engine.generate(
            [
                Request(tuple(prompt), replace(decoding, seed=seed, stop=template.stop), template.stop_tokens)
                for seed, prompt in enumerate(prompts)
            ]
        )
    finally:
        engine.close()
