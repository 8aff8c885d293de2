"""A streamed completion: events to chunks, and chunks to server-sent events.

In: a flow of events. Out: per choice a role chunk, text as it comes, what else the choice holds, a finish chunk; then
the usage chunk if asked for, and `[DONE]`. Nothing is sent before the first visible event, so that an error raised
on the way there is still an HTTP status and not a broken stream.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from demeanor.core.types import Completion, Event, Refusal, Text, fold
from demeanor.server.answers import (
    Answer,
    ChatChunk,
    ChunkChoice,
    Logprobs,
    MessageAnswer,
    calls,
    cited,
    finish_reason,
    token_logprobs,
    usage,
)
from demeanor.server.flow import Step, while_connected

Head = dict[str, Any]
"""The fields that every chunk of a response shares: id, object, created, model, system_fingerprint."""


class Draft:
    """One choice while it grows: its events, and what of it the client has seen."""

    def __init__(self, index: int, *, logprobs: bool, parallel: bool = True) -> None:
        self.index, self.logprobs, self.parallel = index, logprobs, parallel
        self.events: list[Event] = []
        self.has_text = self.refused = False

    def add(self, event: Event) -> ChunkChoice | None:
        """Take an event; return what the client is told of it now, if anything."""
        self.events.append(event)
        if self.refused:
            return None
        if isinstance(event, Refusal):
            self.refused = True
            said = {} if self.has_text else {"content": event.text}
            return self.chunk(MessageAnswer(refusal=event.text, **said))
        if isinstance(event, Text) and (event.text or (self.logprobs and event.logprobs)):
            self.has_text = True
            return self.chunk(
                MessageAnswer(content=event.text), token_logprobs([event]) if self.logprobs else None
            )
        return None

    def role(self) -> ChunkChoice:
        return self.chunk(MessageAnswer(role="assistant", content="", refusal=None))

    def end(self) -> list[ChunkChoice]:
        """The last chunks: tool calls that no layer answered, then citations and the reason for the end."""
        completion = self.completion()
        reason = finish_reason(completion)
        last = MessageAnswer()
        called = []
        if completion.refusal is None:
            if completion.tool_calls:
                made = completion.tool_calls[: None if self.parallel else 1]
                called = [self.chunk(MessageAnswer(tool_calls=calls(made, streamed=True)))]
            if spans := cited(completion.events):
                last = MessageAnswer(annotations=spans)
        return [*called, self.chunk(last, reason=reason)]

    def completion(self) -> Completion:
        return fold(self.events)

    def chunk(
        self, delta: MessageAnswer, logprobs: Logprobs | None = None, reason: str | None = None
    ) -> ChunkChoice:
        return ChunkChoice(index=self.index, delta=delta, logprobs=logprobs, finish_reason=reason)


async def chunks(
    steps: AsyncGenerator[Step, None],
    num_choices: int,
    head: Head,
    *,
    logprobs: bool,
    include_usage: bool,
    parallel: bool = True,
    trace: Callable[[Sequence[Sequence[Event]]], dict[str, Any]],
) -> AsyncGenerator[ChatChunk, None]:
    """Turn a flow of events into chunks; the last chunk carries the trace.

    Raises what the turns raise, and RequestError (503) if a turn was cancelled from inside.
    """
    drafts = [Draft(i, logprobs=logprobs, parallel=parallel) for i in range(num_choices)]
    shared = head | ({"usage": None} if include_usage else {})
    running, greeted = num_choices, False
    async with aclosing(steps):
        async for index, event in steps:
            draft = drafts[index]
            told = draft.end() if event is None else [chunk] if (chunk := draft.add(event)) else []
            if told and not greeted:
                greeted = True
                for each in drafts:
                    yield ChatChunk(**shared, choices=[each.role()])
            running -= event is None
            for chunk in told:
                last = not running and chunk is told[-1] and not include_usage
                done = {"demeanor": trace([d.events for d in drafts])} if last else {}
                yield ChatChunk(**shared, choices=[chunk], **done)
    if include_usage:
        total = usage([d.completion() for d in drafts])
        yield ChatChunk(**head, choices=[], usage=total, demeanor=trace([d.events for d in drafts]))


class EventStream(Response):
    """A response that sends chunks as server-sent events and ends the turns behind it when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[Answer, None], problem: Callable[[Exception], bytes]) -> None:
        """`problem` makes the last event's data of an error that comes too late for an HTTP status."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.chunks, self.problem = chunks, problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_connected(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        started = False
        async with aclosing(self.chunks) as chunks:
            try:
                async for chunk in chunks:
                    if not started:
                        started = True
                        await send(
                            {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                        )
                    await self.frame(send, chunk.encode())
                await self.frame(send, b"[DONE]")
            except Exception as error:
                if not started:
                    raise
                await self.frame(send, self.problem(error))
        await send({"type": "http.response.body", "body": b""})

    async def frame(self, send: Send, data: bytes) -> None:
        """Send one event."""
        await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": True})
