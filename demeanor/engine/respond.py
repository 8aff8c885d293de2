"""The innermost `respond`: render the prompt, decode, and parse the tokens back into events.

In: a turn of messages, or with `raw` a turn of plain tokens without a template (if a layer changed the turn's
text, the text is used instead of `raw`). Out: its events, with log-probabilities on request. Also here:
caching of answers, earlier answers as drafts, embeddings, sampling and scoring of single answers.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from demeanor.core.errors import DecodingError
from demeanor.core.long_text import off_loop
from demeanor.core.types import (
    Decoding,
    Done,
    Event,
    FinishReason,
    Messages,
    PromptRead,
    Respond,
    Text,
    Timing,
    TokenLogprob,
    ToolCalled,
    ToolSpec,
    Turn,
    Usage,
    num_chars,
)
from demeanor.engine.local import LocalEngine
from demeanor.engine.scheduler import Piece, Request, draftable
from demeanor.model.llama import Llama
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_calls import cut_call, needs_grammar
from demeanor.text.tool_grammar import constrain_tool_calls, enforced_schemas

MOST_DRAFTS = (
    4  # drafts kept for each question, newest first; more are seldom right and cost a comparison each
)
ASKING = ("user", "tool")
MOST_AT_ONCE = 32  # prompts that `complete_prompts` answers at the same time; limits memory


class Engine(Protocol):
    """What a respond needs of an engine: pieces of the answer to a request."""

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]: ...


@dataclass(frozen=True, slots=True)
class TokenizerCodec:
    """Encodes and decodes raw text with the tokenizer of one set of weights."""

    tokenizer: Tokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the BOS token, if there is one, and the text's tokens; special strings are plain text."""
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
    """Continue the turn's raw tokens; top_logprobs covers every new token, the end token included."""
    started, text = clock(), turn.messages[-1].content
    tokens = await off_loop(len(text), _raw_tokens, codec, turn)
    decoding, num_written, num_cached, finish = turn.decoding, 0, 0, "stop"
    request = Request(tokens, decoding, stop_tokens, decoding.prompt_logprobs)
    async with aclosing(engine.stream(request)) as stream:
        async for piece in stream:
            if piece.prompt:
                yield PromptRead(
                    tuple(r.text for r in piece.prompt),
                    tuple(r.logprob for r in piece.prompt),
                    tuple(r.top for r in piece.prompt),
                    data=tuple(codec.tokenizer.token_bytes(r.token, r.text) for r in piece.prompt),
                )
            finish, num_cached = piece.finish or finish, piece.cached
            if piece.token < 0:  # only the prompt was read
                continue
            num_written += 1
            logprobs: tuple[TokenLogprob, ...] = ()
            if decoding.top_logprobs is not None:
                logprobs = (_token_logprob(codec.tokenizer, piece),)
            if piece.text or logprobs:
                yield Text(piece.text, logprobs=logprobs)
    yield Timing("weights", 1000 * (clock() - started))
    yield Usage(len(tokens), num_written, cached_tokens=num_cached)
    reason: FinishReason = finish  # type: ignore[assignment]
    yield Done(reason)


def _raw_tokens(codec: TokenizerCodec, turn: Turn) -> tuple[int, ...]:
    """Return the turn's raw tokens, or the tokens of its text if a layer changed that."""
    text = turn.messages[-1].content
    return turn.raw if turn.raw is not None and codec.decode(turn.raw) == text else codec.encode(text)


def model_respond(
    engine: Engine,
    template: Template,
    clock: Callable[[], float] = time.perf_counter,
    *,
    tokenizer: Tokenizer | None = None,
    drafts: Drafts | None = None,
    weights: str = "",
) -> Respond:
    """Return the innermost respond: render the turn, decode, parse the tokens into events.

    `tokenizer` is needed for raw turns and for enforced tool calls. `drafts` holds earlier answers of these
    `weights`, which are verified instead of generated.
    """

    special: Mapping[str, int] = tokenizer.special if tokenizer else {}

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        started = clock()
        if turn.raw is not None and tokenizer is not None:
            codec = TokenizerCodec(tokenizer)
            async with aclosing(raw_completion(engine, codec, turn, template.stop_tokens, clock)) as events:
                async for event in events:
                    yield event
            return
        offered = () if turn.tool_choice == "none" else turn.tools
        render = partial(template.render, turn.messages, offered, generate=True)
        tokens = tuple((await off_loop(num_chars(turn.messages, offered), render)).tokens)
        reader = template.reader()
        decoding = turn.decoding
        if needs_grammar(decoding, offered, turn.tool_choice):
            decoding = constrain_tool_calls(decoding, offered, turn.tool_choice, reader, special)
        is_constrained = decoding.form is not turn.decoding.form
        decoding = replace(decoding, stop=(*decoding.stop, *template.stop))
        shown, ending = ShownTokens(), list[Text | ToolCalled]()
        answer, finish, called, num_cached = list[int](), "stop", False, 0
        # The engine ignores drafts of other requests, so they must not count as confirmed.
        question = topic(weights, turn.messages) if drafts and draftable(decoding) else None
        tried = drafts.of(question) if drafts and question else ()
        request = Request(tokens, decoding, template.stop_tokens, drafts=tried)
        try:
            async with aclosing(engine.stream(request)) as stream:
                async for piece in stream:
                    answer.append(piece.token)
                    num_cached = piece.cached
                    if decoding.top_logprobs is not None and piece.token not in template.stop_tokens:
                        shown.pending.append(_token_logprob(tokenizer, piece))
                    read = reader.feed(piece.token, piece.text)
                    if piece.finish is not None:
                        finish, ending = piece.finish, read
                        break
                    for event in read:
                        called |= isinstance(event, ToolCalled)
                        yield shown.attached(event)
        except DecodingError as error:
            if is_constrained and error.param == "response_format":
                raise await _of_its_field(engine, tokens, turn, offered, error) from None
            raise
        ending += reader.finish()
        is_demanded = turn.tool_choice not in ("auto", "none")
        is_cut = is_demanded and finish == "length" and not any(isinstance(e, ToolCalled) for e in ending)
        if is_cut and not called:
            body = "".join(event.text for event in ending if isinstance(event, Text))
            ending = [cut_call(body, offered, turn.tool_choice)]
        for event in ending:
            called |= isinstance(event, ToolCalled) and not is_cut
            yield shown.attached(event)
        for text in shown.rest():
            yield text
        yield Timing("weights", 1000 * (clock() - started))
        yield Usage(len(tokens), len(answer), cached_tokens=num_cached)
        if drafts and question:
            drafts.keep(question, answer, tried)
        reason: FinishReason = "tool_calls" if called else finish  # type: ignore[assignment]
        yield Done(reason)

    return respond


def _token_logprob(tokenizer: Tokenizer | None, piece: Piece) -> TokenLogprob:
    data = None if tokenizer is None else tokenizer.token_bytes(piece.token, piece.own)
    return TokenLogprob(piece.own or piece.text, piece.logprob, piece.top, data)


class ShownTokens:
    """Puts `pending` tokens to the texts that they stand in; tokens of calls and of stop strings stand in none."""

    def __init__(self) -> None:
        self.pending: list[TokenLogprob] = []
        self._bytes = self._attached = 0  # of the texts so far, and of the tokens put to them

    def attached(self, event: Event) -> Event:
        """Return the event, a text with the tokens that end in it."""
        if isinstance(event, ToolCalled):
            self.pending.clear()
        if not isinstance(event, Text) or not self.pending:
            return event
        if not self._bytes and self.pending[0].token.startswith(" ") and not event.text.startswith(" "):
            first = self.pending[0]  # the space belongs to the template
            self.pending[0] = replace(first, token=first.token[1:], bytes=first.own_bytes[1:])
        self._bytes += len(event.text.encode("utf-8", "replace"))
        found = []
        while self.pending and self._attached + len(self.pending[0].own_bytes) <= self._bytes:
            found.append(self.pending.pop(0))
            self._attached += len(found[-1].own_bytes)
        return replace(event, logprobs=tuple(found))

    def rest(self) -> list[Text]:
        """Return the part before a stop string of a token that begins before it, if there is one."""
        left = self._bytes - self._attached
        if not self.pending or left <= 0:
            return []
        cut = self.pending[0].own_bytes[:left]
        return [
            Text(
                "",
                logprobs=(replace(self.pending[0], token=bytes(cut).decode("utf-8", "replace"), bytes=cut),),
            )
        ]


async def _of_its_field(
    engine: Engine, tokens: tuple[int, ...], turn: Turn, offered: Sequence[ToolSpec], error: DecodingError
) -> DecodingError:
    """Return the error with the field whose schema is at fault: a tool's parameters, the format, or the tools together."""
    parts = [
        (f"tools.{tool.name}", f"the parameters of {tool.name}: ", form)
        for tool, form in enforced_schemas(offered, turn.tool_choice)
    ]
    if turn.decoding.form is not None:
        parts.append(("response_format", "", turn.decoding.form))
    for param, place, form in parts:
        try:
            async with aclosing(
                engine.stream(Request(tokens, Decoding(0, max_tokens=1, form=form)))
            ) as pieces:
                await anext(pieces)
        except DecodingError as own:
            return DecodingError(f"{place}{own}", param)
    return DecodingError(f"tools: {error}", "tools")


def cached(inner: Respond, key: str, memory: dict[Any, asyncio.Future[list[Event]]]) -> Respond:
    """Share answers between variants whose weights (`key`) get the same turn; only repeatable draws are
    shared."""

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
                failed.exception()  # marks it as retrieved: without a waiter it is not reported again
                raise
        for event in await memory[cell]:
            yield event

    return respond


def with_identity(inner: Respond, variant: str, key: str) -> Respond:
    """Set the variant and its stack key on every turn."""

    def respond(turn: Turn) -> AsyncIterator[Event]:
        return inner(replace(turn, variant=variant, stack_key=key))

    return respond


def unit_vector(engine: LocalEngine, tokens: tuple[int, ...]) -> list[float]:
    """Return the mean hidden state of a text, scaled to length 1."""
    mean_D = engine.hidden(tokens).float().mean(0)
    return [float(x) for x in (mean_D / mean_D.norm().clamp_min(1e-12)).tolist()]


async def sampled(
    engine: Engine, template: Template, turn: Turn
) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """Draw one answer from the weights: prompt tokens, answer tokens, and the answer's log-probability
    (nats)."""
    prompt = tuple(template.render(turn.messages, turn.tools, generate=True).tokens)
    pieces = [piece async for piece in engine.stream(Request(prompt, turn.decoding, template.stop_tokens))]
    return prompt, tuple(piece.token for piece in pieces), sum(piece.logprob for piece in pieces)


async def answer_logprob(engine: Engine, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Return the log-probability (nats) of an answer after a prompt; nothing is generated."""
    request = Request((*prompt, *answer), Decoding(0.0, max_tokens=0), prompt_logprobs=0)
    (piece,) = [piece async for piece in engine.stream(request)]
    return sum(token.logprob or 0.0 for token in piece.prompt[len(prompt) :])


def complete_prompts(
    model: Llama,
    tokenizer: Tokenizer,
    template: Template,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
) -> list[list[Piece]]:
    """Generate answers to all prompts with a model in training; the n-th prompt has seed n."""
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


def rendered_tokens(template: Template, messages: Messages, tools: Sequence[ToolSpec]) -> int:
    """Number of tokens of a prompt."""
    return len(template.render(messages, tools, generate=True).tokens)


def prompt_tokens(count: Callable[[Messages, Sequence[ToolSpec]], int], turn: Turn) -> int:
    """Number of tokens that the weights read for a turn."""
    return len(turn.raw) if turn.raw is not None else count(turn.messages, turn.tools)


@dataclass
class Drafts:
    """Answers that some weights have given to each question, independent of the context before it.

    Variants of the same weights often give the same answer word for word. The engine verifies a draft many
    tokens at a time, so drafts never change an answer.
    """

    confirmed: int = 0  # answers that equalled one of their drafts
    _answers: dict[Hashable, list[tuple[int, ...]]] = field(default_factory=dict)

    def of(self, topic: Hashable) -> tuple[tuple[int, ...], ...]:
        """Return the drafts for a topic, newest first."""
        return tuple(self._answers.get(topic, ()))

    def keep(self, topic: Hashable, tokens: Sequence[int], tried: Sequence[tuple[int, ...]]) -> None:
        """Store an answer; `tried` are the drafts that it was generated with."""
        answer = tuple(tokens)
        self.confirmed += answer in tried
        earlier = [known for known in self._answers.get(topic, ()) if known != answer]
        self._answers[topic] = [answer, *earlier][:MOST_DRAFTS]


def topic(weights: str, messages: Messages) -> Hashable:
    """Return the key of a question: weights and last user or tool message, without the context before it."""
    last = next((m for m in reversed(messages) if m.role in ASKING), None)
    return weights, last and (last.role, last.content)
