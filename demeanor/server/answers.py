"""The responses of /v1/chat/completions in OpenAI's shape: a whole completion, and the chunks of a streamed one.

In: a choice's events. Out: pydantic models; only fields that were set are written. The `demeanor` field is ours: what
every layer did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel

from demeanor.core.errors import RequestError
from demeanor.core.types import Citation, Completion, Event, Passage, Text, TokenLogprob, ToolCall


class Answer(BaseModel):
    """Base of every response object."""

    def encode(self) -> bytes:
        """This object as JSON, fields that were never set left out."""
        return self.model_dump_json(exclude_unset=True).encode()


class FunctionCall(Answer):
    name: str
    arguments: str


class CallAnswer(Answer):
    """A tool call; `index` only in streams."""

    index: int | None = None
    id: str
    type: Literal["function"]
    function: FunctionCall


class UrlCitation(Answer):
    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(Answer):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenAnswer(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(Answer):
    content: list[TokenAnswer] | None
    refusal: None


class MessageAnswer(Answer):
    """A whole message, or (all fields optional) what a chunk adds to one."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallAnswer] | None = None
    annotations: list[Annotation] | None = None


class Choice(Answer):
    index: int
    message: MessageAnswer
    logprobs: Logprobs | None
    finish_reason: str


class ChunkChoice(Answer):
    index: int
    delta: MessageAnswer
    logprobs: Logprobs | None
    finish_reason: str | None


class UsageAnswer(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(Answer):
    """The body of a plain response."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: UsageAnswer
    demeanor: dict[str, Any]


class ChatChunk(Answer):
    """One `data:` line of a streamed response."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: UsageAnswer | None = None
    demeanor: dict[str, Any] | None = None


class AboutModel(Answer):
    description: str
    stack_key: str
    layers: list[str]


class ModelAnswer(Answer):
    """One variant."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    demeanor: AboutModel


class AboutStack(Answer):
    name: str
    stack_key: str
    examples: list[str]


class ModelList(Answer):
    """The offered variants."""

    object: Literal["list"]
    data: list[ModelAnswer]
    demeanor: AboutStack


def choice(index: int, completion: Completion, *, logprobs: bool, parallel: bool = True) -> Choice:
    """A finished choice; unless `parallel` at most one call is in it. Raises RequestError (503) if the turn was cancelled from inside."""
    message = MessageAnswer(role="assistant", content=completion.text, refusal=None, annotations=[])
    if completion.refusal is not None:
        message.refusal = completion.refusal.text
    else:
        message.annotations = cited(completion.events)
        if completion.tool_calls:
            message.content = completion.text or None
            message.tool_calls = calls(completion.tool_calls[: None if parallel else 1])
    return Choice(
        index=index,
        message=message,
        finish_reason=finish_reason(completion),
        logprobs=token_logprobs(() if completion.refusal else completion.events) if logprobs else None,
    )


def finish_reason(completion: Completion) -> str:
    """Why a choice ended, in OpenAI's words. Raises RequestError (503) if the turn was cancelled from inside."""
    if completion.refusal is not None:
        return "content_filter"
    if completion.finish_reason == "cancelled":
        raise RequestError(
            "The answer was cut off: the server is stopping.",
            status=503,
            kind="server_error",
            code="cancelled",
        )
    return "tool_calls" if completion.tool_calls else completion.finish_reason


def calls(made: Sequence[ToolCall], *, streamed: bool = False) -> list[CallAnswer]:
    """Tool calls for the client to run; chunks number them."""
    found = [
        CallAnswer(id=c.id, type="function", function=FunctionCall(name=c.name, arguments=c.arguments))
        for c in made
    ]
    return [call.model_copy(update={"index": i}) for i, call in enumerate(found)] if streamed else found


def token_logprobs(events: Sequence[Event]) -> Logprobs:
    """Log-probabilities (nats) of the tokens of these events' text."""
    tokens = [token for event in events if isinstance(event, Text) for token in event.logprobs]
    return Logprobs(content=[_token(token) for token in tokens], refusal=None)


def _token(token: TokenLogprob) -> TokenAnswer:
    top = [TopLogprob(token=t, logprob=p, bytes=list(t.encode())) for t, p in token.top]
    return TokenAnswer(
        token=token.token, logprob=token.logprob, bytes=list(token.token.encode()), top_logprobs=top
    )


def cited(events: Sequence[Event]) -> list[Annotation]:
    """Citations as OpenAI's `url_citation`; a passage without a web address is cited as `passage:ID`."""
    passages = {e.id: e for e in events if isinstance(e, Passage)}
    return [_annotation(e, passages.get(e.passage_id)) for e in events if isinstance(e, Citation)]


def _annotation(citation: Citation, passage: Passage | None) -> Annotation:
    source = passage.source if passage else citation.passage_id
    url = source if source.startswith(("http://", "https://")) else f"passage:{quote(citation.passage_id)}"
    return Annotation(
        type="url_citation",
        url_citation=UrlCitation(start_index=citation.start, end_index=citation.end, title=source, url=url),
    )


def usage(completions: Sequence[Completion]) -> UsageAnswer:
    """Tokens read and written by all model calls of all choices."""
    read, written = sum(c.prompt_tokens for c in completions), sum(c.completion_tokens for c in completions)
    return UsageAnswer(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)
