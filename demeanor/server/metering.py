"""What a request's turns did, written into its Call: tokens, refusals, milliseconds per layer, first and last token.

In: an Assistant. Out: the same one, whose answers are watched as they pass; events go by untouched.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from demeanor.core.types import Event, Refusal, Respond, Text, Timing, ToolCalled, Turn, Usage
from demeanor.server.assistant import Assistant
from demeanor.server.calls import CALL, Call
from demeanor.server.operations import Load


@dataclass(frozen=True)
class Metered:
    """An Assistant that keeps the account of each request; all but `respond` and `embed` is the inner one's."""

    inner: Assistant
    load: Load
    clock: Callable[[], float]
    keep_contents: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def respond(self, model_id: str) -> Respond:
        return metered(self.inner.respond(model_id), self.load, self.clock, keep_contents=self.keep_contents)

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        """As the inner one's; the tokens of the texts are charged to the request's purse, and given back if it fails."""
        call, tokens = CALL.get(), sum(map(len, texts))
        day = await call.purse.reserve(tokens) if call is not None and call.purse is not None else ""
        self.load.turns += 1
        try:
            vectors: list[list[float]] = await self.inner.embed(model_id, texts)  # type: ignore[attr-defined, unused-ignore]
        except BaseException:
            if call is not None and call.purse is not None:
                await call.purse.settle(day, tokens, 0)
            raise
        finally:
            self.load.turns -= 1
        if call is not None:
            call.model, call.stack_key = model_id, self.inner.card(model_id).stack_key
            call.turns += 1
            call.prompt_tokens += tokens
        return vectors


def metered(
    inner: Respond, load: Load, clock: Callable[[], float], *, keep_contents: bool = False
) -> Respond:
    """Keep the account of the turns that pass."""

    async def respond(turn: Turn) -> AsyncIterator[Event]:
        call, events = CALL.get(), inner(turn)
        kept: list[Event] | None = None
        if call is not None:
            call.model, call.stack_key = turn.variant, turn.stack_key
            call.turns += 1
            if keep_contents:
                call.said.append((turn, kept := []))
        load.turns += 1
        try:
            async for event in events:
                if call is not None:
                    note(call, event, clock())
                    if kept is not None:
                        kept.append(event)
                yield event
        finally:
            load.turns -= 1
            if isinstance(events, AsyncGenerator):
                await events.aclose()

    return respond


def note(call: Call, event: Event, now: float) -> None:
    """Add one event to a request's account."""
    match event:
        case Timing(by, ms):
            call.layers_ms[by] = call.layers_ms.get(by, 0.0) + ms
        case Usage(prompt_tokens, completion_tokens):
            call.prompt_tokens += prompt_tokens
            call.completion_tokens += completion_tokens
        case Refusal(by, rule):
            call.refusals.append((by, rule))
        case Text() | ToolCalled():
            call.first_token = now if call.first_token is None else call.first_token
            call.last_token = now
        case _:
            pass
