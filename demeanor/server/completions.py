"""POST /v1/completions: raw text that the weights go on writing, with no template and no layer that adds messages.

In: OpenAI's legacy body. Out: whole or streamed completions; with `echo` and `logprobs` how likely the prompt was, which is how
evaluation harnesses score. It shares turns, layers and records with chat.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import Annotated, Any, Self, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import Discriminator, Field, Tag, model_validator

from demeanor.core.errors import ContextError, RequestError
from demeanor.core.types import Event, Message, Respond, Turn, fold
from demeanor.server import problems
from demeanor.server.answers import usage
from demeanor.server.assistant import Assistant, Codec, ModelCard
from demeanor.server.bodies import MAX_LIMIT, StreamOptions, never, only, wrong
from demeanor.server.completion_answers import CompletionChunk, Growing, TextCompletion, text_choice
from demeanor.server.flow import Step, flow, gathered, while_connected
from demeanor.server.incoming import body
from demeanor.server.parse import read
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.sampling import Sampling, sampled
from demeanor.server.stream import EventStream
from demeanor.server.trace import trace

MAX_PROMPTS = 256

Token: TypeAlias = Annotated[int, Field(ge=0, le=MAX_LIMIT)]
Tokens: TypeAlias = Annotated[list[Token], Field(min_length=1)]
PromptText: TypeAlias = Annotated[str, Field(min_length=1)]


def _kind(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    first = value[0] if value else None
    return "<tokens>" if isinstance(first, int) else "<token lists>" if isinstance(first, list) else "<texts>"


Prompt: TypeAlias = Annotated[
    Annotated[PromptText, Tag("<text>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS)], Tag("<texts>")]
    | Annotated[Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)], Tag("<token lists>")],
    Discriminator(_kind),
]


class CompletionRequest(Sampling):
    """The body of POST /v1/completions."""

    model: str = Field(description="a variant's id, see GET /v1/models; one without layers that add messages")
    prompt: Prompt
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_LIMIT, description="longest continuation in tokens; 0 with echo only"
    )
    echo: bool | None = Field(None, description="the prompt stands before its continuation")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="log-probabilities (nats) with so many alternatives"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, min_length=1, max_length=256)
    best_of: Annotated[Any, only(1, because="every answer is returned; use n")] = None
    suffix: Annotated[Any, never("the weights only go on writing at the end")] = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "needs stream: true", "invalid_value")
        if self.max_tokens == 0 and not self.echo:
            raise wrong("max_tokens", "0 needs echo: true; nothing would be said", "invalid_value")
        return self

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, one or more."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        one = tuple(x for x in self.prompt if isinstance(x, int))
        return (
            [one]
            if one
            else [x if isinstance(x, str) else tuple(x) for x in self.prompt if not isinstance(x, int)]
        )


def completions(
    assistant: Assistant,
    max_body_bytes: int,
    clock: Callable[[], float],
    now: Callable[[], float],
) -> APIRouter:
    """The route; `clock` in monotonic seconds, `now` in seconds since 1970."""
    router = APIRouter(prefix="/v1")

    @router.post("/completions")
    async def complete(request: Request) -> Response:
        started = clock()
        user = CURRENT_REQUEST.get().user
        asked = read(await body(request, max_body_bytes), CompletionRequest)
        card, respond, codec = (
            assistant.card(asked.model),
            assistant.respond(asked.model),
            assistant.codec(asked.model),
        )
        request.state.stack_key = card.stack_key
        request_id: str = request.state.request_id
        completion_id = f"cmpl-{request_id.removeprefix('req_')}"
        turns = raw_turns(asked, codec, card, assistant, user=user, id=completion_id)
        head = {
            "id": completion_id,
            "object": "text_completion",
            "created": int(now()),
            "model": card.id,
            "system_fingerprint": card.stack_key,
        }
        drafts = [
            Growing(i, turn.messages[0].content if asked.echo else "", logprobs=asked.logprobs is not None)
            for i, turn in enumerate(turns)
        ]

        def traced(events: Sequence[Sequence[Event]]) -> dict[str, Any]:
            return trace(card, events, 1000 * (clock() - started))

        if not asked.stream:
            choices = await while_connected(request.receive, gathered(about_prompt(respond), turns))
            answer = TextCompletion(
                **head,
                choices=[text_choice(draft, events) for draft, events in zip(drafts, choices)],
                usage=usage([fold(events) for events in choices]),
                demeanor=traced(choices),
            )
            headers = {"cache-control": "no-store", "x-demeanor-ms": str(answer.demeanor["ms"])}
            return Response(answer.encode(), media_type="application/json", headers=headers)
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return EventStream(
            chunks(flow(about_prompt(respond), turns), drafts, head, include_usage=with_usage, trace=traced),
            lambda error: problems.body(problems.refusal_of(error, request_id)),
        )

    return router


def raw_turns(
    asked: CompletionRequest,
    codec: Codec,
    card: ModelCard,
    assistant: Assistant,
    *,
    user: str | None,
    id: str,
) -> list[Turn]:
    """One Turn per prompt and choice, all choices of the first prompt first; a prompt is drawn alike alone or among others.

    Raises RequestError (400) for a token that the model has not.
    """
    found: list[Turn] = []
    for i, prompt in enumerate(asked.prompts):
        tokens = codec.encode(prompt) if isinstance(prompt, str) else prompt
        wrong_token = next((t for t in tokens if t >= codec.vocab_size), None)
        if wrong_token is not None:
            raise RequestError(
                f"prompt: {wrong_token} is not a token; wanted ids of 0 to {codec.vocab_size - 1}",
                param="prompt" if len(asked.prompts) == 1 else f"prompt[{i}]",
                code="invalid_value",
            )
        text = prompt if isinstance(prompt, str) else codec.decode(tokens)
        for choice in range(asked.n or 1):
            decoding = sampled(asked, assistant.defaults(), choice)
            limit = decoding.max_tokens if asked.max_tokens is None else asked.max_tokens
            prompt_logprobs = (
                asked.logprobs if asked.echo and asked.logprobs is not None else 0 if limit == 0 else None
            )
            found.append(
                Turn(
                    (Message("user", text),),
                    replace(
                        decoding,
                        max_tokens=limit,
                        top_logprobs=asked.logprobs,
                        prompt_logprobs=prompt_logprobs,
                    ),
                    id=f"{id}-{len(found)}" if found else id,
                    user=user or asked.user or "anonymous",
                    variant=card.id,
                    stack_key=card.stack_key,
                    metadata={} if asked.user is None else {"user": asked.user},
                    raw=tokens,
                )
            )
    return found


def about_prompt(respond: Respond) -> Respond:
    """The same, but a prompt that is too long is the mistake of the field `prompt`."""

    async def told(turn: Turn) -> AsyncIterator[Event]:
        try:
            events = respond(turn)
            async with aclosing(events) if isinstance(events, AsyncGenerator) else nullcontext():
                async for event in events:
                    yield event
        except ContextError as error:
            raise RequestError(str(error), param="prompt", code="context_length_exceeded") from error

    return told


async def chunks(
    steps: AsyncGenerator[Step, None],
    drafts: Sequence[Growing],
    head: dict[str, Any],
    *,
    include_usage: bool,
    trace: Callable[[Sequence[Sequence[Event]]], dict[str, Any]],
) -> AsyncGenerator[CompletionChunk, None]:
    """Turn a flow of events into chunks; the last chunk carries the trace. Raises what the turns raise."""
    shared = head | ({"usage": None} if include_usage else {})
    running = len(drafts)
    async with aclosing(steps):
        async for index, event in steps:
            told = drafts[index].end() if event is None else drafts[index].add(event)
            running -= event is None
            if told is not None:
                last = not running and not include_usage
                yield CompletionChunk(
                    **shared,
                    choices=[told],
                    **({"demeanor": trace([d.events for d in drafts])} if last else {}),
                )
    if include_usage:
        total = usage([fold(d.events) for d in drafts])
        yield CompletionChunk(**head, choices=[], usage=total, demeanor=trace([d.events for d in drafts]))
