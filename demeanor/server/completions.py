"""POST /v1/completions: raw text that the weights continue, with no template and no layer that adds messages.

In: OpenAI's legacy body. Out: whole or streamed completions; with `echo` and `logprobs` the log-probabilities of the prompt, from which
evaluation harnesses score. It shares turns, layers and records with chat. A token's `text_offset` counts the characters before it.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, Self, TypeAlias

from fastapi import APIRouter, Request, Response
from pydantic import Discriminator, Field, Tag, model_validator

from demeanor.core.errors import ContextError, DemeanorError, RequestError, TextError
from demeanor.core.long_text import off_loop
from demeanor.core.types import Decoding, Event, Message, PromptRead, Refusal, Text, Turn, fold
from demeanor.server.assistant import Codec, ModelCard
from demeanor.server.chat import CompletionBase, UsageAnswer, completion_response, finish_reason
from demeanor.server.chat_request import SamplingFields, sampling
from demeanor.server.client_settings import refuse_fixed
from demeanor.server.endpoint import GENERATED, documented, read_body, state_of, with_errors
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import MAX_LIMIT, ResponseObject, StreamOptions, never, only, refusing, wrong

MAX_PROMPTS = 256
SAME_NATS = 1e-4
router = APIRouter()

Token: TypeAlias = Annotated[int, Field(ge=0, le=MAX_LIMIT)]
Tokens: TypeAlias = Annotated[list[Token], Field(min_length=1)]
PromptText: TypeAlias = Annotated[str, Field(min_length=1)]


def _prompt_tag(value: Any) -> str:
    if not isinstance(value, list):
        return "<text>"
    if value and isinstance(value[0], int):
        return "<tokens>"
    return "<token lists>" if value and isinstance(value[0], list) else "<texts>"


Prompt: TypeAlias = Annotated[
    Annotated[PromptText, Tag("<text>")]
    | Annotated[Tokens, Tag("<tokens>")]
    | Annotated[Annotated[list[PromptText], Field(min_length=1, max_length=MAX_PROMPTS)], Tag("<texts>")]
    | Annotated[Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)], Tag("<token lists>")],
    Discriminator(_prompt_tag),
]


@refusing(
    best_of=only(1, because="every answer is returned; use n"),
    suffix=never("the weights only go on writing at the end"),
)
class CompletionRequest(SamplingFields):
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

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "needs stream: true", "invalid_value")
        if self.max_tokens == 0 and not self.echo:
            raise wrong("max_tokens", "0 needs echo: true; nothing would be said", "invalid_value")
        return self


def prompt_list(prompt: Prompt) -> list[str | tuple[int, ...]]:
    """A field of one prompt or several as a list, each of them text or tokens."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [tuple(token for token in prompt if isinstance(token, int))]
    return [p if isinstance(p, str) else tuple(p) for p in prompt if not isinstance(p, int)]


Row = tuple[str, float | None, tuple[tuple[str, float], ...], tuple[int, ...]]
"""A token: its text, its log-probability, its alternatives, its bytes in the text."""


class TextLogprobs(ResponseObject):
    """One entry per token in each list; the first token of a prompt has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(ResponseObject):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: str | None


class TextCompletion(CompletionBase):
    """The body of a plain response."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: UsageAnswer
    demeanor: dict[str, Any]


class CompletionChunk(CompletionBase):
    """One `data:` line of a streamed response."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


@router.post(
    "/v1/completions",
    **documented(
        "Raw text that the weights go on writing",
        GENERATED,
        TextCompletion,
        body=CompletionRequest,
        event=CompletionChunk,
    ),
)
async def create_completion(request: Request) -> Response:
    state = state_of(request)
    assistant, started = state.assistant, state.clock()
    body = await read_body(request, CompletionRequest)
    refuse_fixed(assistant.client_access().settings, body)
    card, respond = assistant.card(body.model), with_errors(assistant.respond(body.model), of_prompt)
    codec = assistant.codec(body.model)
    request.state.stack_key = card.stack_key
    id = f"cmpl-{request.state.request_id.removeprefix('req_')}"
    user = CURRENT_REQUEST.get().user
    size = sum(map(len, prompt_list(body.prompt)))
    turns = await off_loop(size, completion_turns, body, codec, card, assistant.defaults(), user=user, id=id)
    choices = [
        TextWriter(i, turn.messages[0].content if body.echo else "", logprobs=body.logprobs is not None)
        for i, turn in enumerate(turns)
    ]
    return await completion_response(
        request,
        card,
        respond,
        turns,
        choices,
        partial(TextCompletion, id=id, object="text_completion"),
        partial(CompletionChunk, id=id, object="text_completion") if body.stream else None,
        stream_options=body.stream_options,
        started=started,
    )


def completion_turns(
    body: CompletionRequest, codec: Codec, card: ModelCard, defaults: Decoding, *, user: str | None, id: str
) -> list[Turn]:
    """One Turn per prompt and choice, all choices of the first prompt first; a prompt is sampled alike alone or among others.

    Raises RequestError (400) for a token that the model does not have.
    """
    turns: list[Turn] = []
    prompts = prompt_list(body.prompt)
    for i, prompt in enumerate(prompts):
        tokens = codec.encode(prompt) if isinstance(prompt, str) else prompt
        unknown = next((t for t in tokens if t >= codec.vocab_size), None)
        if unknown is not None:
            raise RequestError(
                f"prompt: {unknown} is not a token; wanted ids of 0 to {codec.vocab_size - 1}",
                param="prompt" if len(prompts) == 1 else f"prompt[{i}]",
                code="invalid_value",
            )
        text = prompt if isinstance(prompt, str) else codec.decode(tokens)
        for choice in range(body.n or 1):
            turns.append(
                Turn(
                    (Message("user", text),),
                    _decoding(body, defaults, choice),
                    id=f"{id}-{len(turns)}" if turns else id,
                    user=user or body.user or "anonymous",
                    variant=card.id,
                    stack_key=card.stack_key,
                    metadata={} if body.user is None else {"user": body.user},
                    raw=tokens,
                )
            )
    return turns


def _decoding(body: CompletionRequest, defaults: Decoding, choice: int) -> Decoding:
    max_tokens = defaults.max_tokens if body.max_tokens is None else body.max_tokens
    prompt_logprobs = 0 if max_tokens == 0 else None
    if body.echo and body.logprobs is not None:
        prompt_logprobs = body.logprobs
    return replace(
        sampling(body, defaults, choice),
        max_tokens=max_tokens,
        top_logprobs=body.logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def of_prompt(error: DemeanorError, turn: Turn) -> DemeanorError:
    """The error of a prompt that is too long or no text, by the field `prompt`."""
    if isinstance(error, ContextError):
        return RequestError(str(error), param="prompt", code="context_length_exceeded")
    return (
        RequestError(error.what, param="prompt", code="invalid_value")
        if isinstance(error, TextError)
        else error
    )


class TextWriter:
    """Writes one continuation; `echo` is the prompt that stands before it ("": none)."""

    def __init__(self, index: int, echo: str, *, logprobs: bool) -> None:
        self.index, self.logprobs = index, logprobs
        self.events: list[Event] = []
        self._echo, self._offset, self._refused, self._began = echo, 0, False, False
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def whole(self, events: list[Event]) -> TextChoice:
        """The parts put together."""
        parts = [part for event in events for part in self.add(event)] + self.end()
        choice = parts[-1].model_copy(update={"text": "".join(part.text for part in parts)})
        refusal = fold(events).refusal
        if refusal is not None:
            choice.text = refusal.text
        elif self.logprobs:
            logprobs = [part.logprobs for part in parts if part.logprobs is not None]
            choice.logprobs = TextLogprobs(
                tokens=[x for p in logprobs for x in p.tokens],
                token_logprobs=[x for p in logprobs for x in p.token_logprobs],
                top_logprobs=[x for p in logprobs for x in p.top_logprobs],
                text_offset=[x for p in logprobs for x in p.text_offset],
            )
        return choice

    def start(self) -> list[TextChoice]:
        return []

    def add(self, event: Event) -> list[TextChoice]:
        self.events.append(event)
        if self._refused:
            return []
        if isinstance(event, Refusal):
            self._refused = True
            return [] if self._began else [self._part(event.text, [], echo=False)]
        if isinstance(event, PromptRead) and self._echo:
            known = event.data or tuple(tuple(t.encode("utf-8", "replace")) for t in event.tokens)
            if "\ufffd" not in event.tokens[0] and not self._echo.startswith(event.tokens[0]):
                known = ((), *known[1:])  # bos is read and not part of the text
            return [self._part("", list(zip(event.tokens, event.logprobs, event.top, known)))]
        if isinstance(event, Text) and (event.text or (self.logprobs and event.logprobs)):
            return [
                self._part(event.text, [(t.token, t.logprob, t.top, t.own_bytes) for t in event.logprobs])
            ]
        return []

    def end(self) -> list[TextChoice]:
        reason = finish_reason(fold(self.events))
        last = self._part("", [], echo=not self._refused)
        return [last.model_copy(update={"finish_reason": reason, "logprobs": None})]

    def _part(self, text: str, rows: Sequence[Row], *, echo: bool = True) -> TextChoice:
        if echo:
            text = self._echo + text
        self._echo, self._began = "", True
        logprobs = self._logprobs(rows) if self.logprobs else None
        return TextChoice(index=self.index, text=text, logprobs=logprobs, finish_reason=None)

    def _logprobs(self, rows: Sequence[Row]) -> TextLogprobs:
        offsets = []
        for _, _, _, data in rows:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(bytes(data)))  # characters that are whole by now
        return TextLogprobs(
            tokens=[token for token, *_ in rows],
            token_logprobs=[logprob for _, logprob, *_ in rows],
            top_logprobs=[_top(row) for row in rows],
            text_offset=offsets,
        )


def _top(row: Row) -> dict[str, float] | None:
    """The alternatives by text, the token itself among them; of two tokens with one text the likelier counts.

    A harness asks whether the token's value equals the largest one: the token's own must not differ from it in a last bit.
    """
    token, logprob, top, _ = row
    if logprob is None:
        return None
    found: dict[str, float] = {}
    for text, value in top:
        found.setdefault(text, value)
    if token not in found or abs(found[token] - logprob) < SAME_NATS:
        found[token] = logprob
    return found
