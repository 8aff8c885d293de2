"""The innermost responds: weights behind a template, and answers that several variants share.

In: an engine and a template. Out: a Respond, tokens read back into events. What is around it is the house's.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Protocol

from demeanor.build.continuing import Codec, continued
from demeanor.build.drafting import Drafts, topic
from demeanor.build.forcing import held
from demeanor.engine.local import Piece, Request
from demeanor.engine.request import draftable
from demeanor.errors import DecodingError
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer
from demeanor.types import (
    Done,
    Event,
    FinishReason,
    Respond,
    Text,
    Timing,
    TokenLogprob,
    ToolCalled,
    Turn,
    Usage,
)


class Engine(Protocol):
    """Tokens to tokens: what `weights_respond` needs of an engine."""

    def stream(self, request: Request) -> AsyncIterator[Piece]: ...


def weights_respond(
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
                continued(engine, Codec(tokenizer), turn, template.stop_tokens, clock)
            ) as events:
                async for event in events:
                    yield event
            return
        offered = () if turn.tool_choice == "none" else turn.tools
        tokens = tuple(template.render(turn.messages, offered, generate=True).tokens)
        reader = template.reader()
        decoding = held(turn.decoding, offered, turn.tool_choice, reader, special)
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


def remembered(inner: Respond, key: str, memory: dict[Any, asyncio.Future[list[Event]]]) -> Respond:
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
