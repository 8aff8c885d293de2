"""Responses in OpenAI's shape: the object itself, its output items, and the events of a streamed one in their order.

In: a turn's events. Out: pydantic models, and event models numbered in sequence. The `demeanor` field is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal, TypeAlias

from pydantic import Field

from demeanor.core.errors import RequestError
from demeanor.core.types import Completion, Event, Refusal, Text, fold
from demeanor.server.answers import Answer, UrlCitation, cited, finish_reason, token_logprobs


class UrlAnnotation(UrlCitation):
    type: Literal["url_citation"]


class OutputText(Answer):
    type: Literal["output_text"]
    text: str
    annotations: list[UrlAnnotation]
    logprobs: list[dict[str, Any]]


class OutputRefusal(Answer):
    type: Literal["refusal"]
    refusal: str


Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(Answer):
    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText | OutputRefusal]


class OutputCall(Answer):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


OutputItem: TypeAlias = OutputMessage | OutputCall


class Details(Answer):
    cached_tokens: int = 0


class ReasoningDetails(Answer):
    reasoning_tokens: int = 0


class ResponseUsage(Answer):
    input_tokens: int
    input_tokens_details: Details
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class Incomplete(Answer):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseAnswer(Answer):
    """A response; while it is written its output is empty and its usage null."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Status
    error: None = None
    incomplete_details: Incomplete | None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    top_p: float
    text: dict[str, Any]
    tool_choice: str | dict[str, str]
    tools: list[dict[str, Any]]
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]
    demeanor: dict[str, Any] | None = None


class StreamEvent(Answer):
    """One event of a streamed response; which fields it has depends on its type, as OpenAI documents."""

    type: str
    sequence_number: int
    response: ResponseAnswer | None = None
    item: OutputItem | None = None
    part: OutputText | OutputRefusal | None = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    delta: str | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    name: str | None = None
    logprobs: list[dict[str, Any]] | None = None
    code: str | None = None
    message: str | None = None
    param: str | None = None
    error: dict[str, Any] | None = None


class Deleted(Answer):
    """A response that is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(Answer):
    """What a stored response was asked."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool = Field(False)


def output(completion: Completion, stem: str, *, logprobs: bool, parallel: bool) -> list[OutputItem]:
    """The items of a finished turn: a message if something was said or refused, then the calls that nobody answered."""
    reason = finish_reason(completion)
    status: Status = "incomplete" if reason in ("length", "content_filter") else "completed"
    said = before_refusal(completion.events)
    content: list[OutputText | OutputRefusal] = []
    if said or (completion.refusal is None and not completion.tool_calls):
        content.append(
            text_part(said, completion.events if completion.refusal is None else (), logprobs=logprobs)
        )
    if completion.refusal is not None:
        content.append(OutputRefusal(type="refusal", refusal=completion.refusal.text))
    items: list[OutputItem] = []
    if content:
        items.append(
            OutputMessage(type="message", id=f"msg_{stem}", status=status, role="assistant", content=content)
        )
    if completion.refusal is None:
        items += [
            OutputCall(
                type="function_call",
                id=f"fc_{stem}_{i}",
                call_id=call.id,
                name=call.name,
                arguments=call.arguments,
                status="completed",
            )
            for i, call in enumerate(completion.tool_calls[: None if parallel else 1])
        ]
    return items


def before_refusal(events: Sequence[Event]) -> str:
    """What was said until a layer refused: what an inner layer says after that reaches nobody."""
    told = takewhile(lambda e: not isinstance(e, Refusal), events)
    return "".join(e.text for e in told if isinstance(e, Text))


def text_part(text: str, events: Sequence[Event], *, logprobs: bool) -> OutputText:
    """A text with its citations and, if asked for, its log-probabilities."""
    spans = [UrlAnnotation(type="url_citation", **a.url_citation.model_dump()) for a in cited(events)]
    return OutputText(
        type="output_text", text=text, annotations=spans, logprobs=listed(events) if logprobs else []
    )


def listed(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Log-probabilities of these events' tokens."""
    return [x.model_dump() for x in token_logprobs(events).content or ()]


def ended(completion: Completion) -> tuple[Status, Incomplete | None]:
    """How a response ended. Raises RequestError (503) if the turn was cancelled from inside."""
    match finish_reason(completion):
        case "length":
            return "incomplete", Incomplete(reason="max_output_tokens")
        case "content_filter":
            return "incomplete", Incomplete(reason="content_filter")
        case _:
            return "completed", None


def used(completion: Completion) -> ResponseUsage:
    """Tokens of all model calls."""
    read, written = completion.prompt_tokens, completion.completion_tokens
    return ResponseUsage(
        input_tokens=read,
        input_tokens_details=Details(cached_tokens=0),
        output_tokens=written,
        output_tokens_details=ReasoningDetails(reasoning_tokens=0),
        total_tokens=read + written,
    )


class Script:
    """The events of one streamed response, in OpenAI's order; `add` and `end` say what is to be sent now."""

    def __init__(self, blank: ResponseAnswer, stem: str, *, logprobs: bool, parallel: bool) -> None:
        self.blank, self.stem, self.logprobs, self.parallel = blank, stem, logprobs, parallel
        self.events: list[Event] = []
        self._number = 0
        self._open = False  # the message and its text part have been announced
        self._refused = False

    def add(self, event: Event) -> Iterator[StreamEvent]:
        """Take an event of the turn."""
        self.events.append(event)
        if self._refused:
            return
        if isinstance(event, Refusal):
            self._refused = True
            yield from self._refusal(event)
        elif isinstance(event, Text) and (event.text or (self.logprobs and event.logprobs)):
            yield from self._opened()
            yield self._event(
                "response.output_text.delta",
                item_id=f"msg_{self.stem}",
                output_index=0,
                content_index=0,
                delta=event.text,
                logprobs=listed([event]) if self.logprobs else [],
            )

    def end(self, whole: ResponseAnswer) -> Iterator[StreamEvent]:
        """Close what is open and send the whole response."""
        if not self._number:
            yield from self._greeting()
        items = list(whole.output)
        for index, item in enumerate(items):
            if isinstance(item, OutputMessage):
                if not self._refused:
                    yield from self._opened()
                    yield from self._text_done(item.content[0])
                yield self._event("response.output_item.done", output_index=index, item=item)
                continue
            opened = item.model_copy(update={"arguments": "", "status": "in_progress"})
            yield self._event("response.output_item.added", output_index=index, item=opened)
            yield self._event(
                "response.function_call_arguments.delta",
                item_id=item.id,
                output_index=index,
                delta=item.arguments,
            )
            yield self._event(
                "response.function_call_arguments.done",
                item_id=item.id,
                output_index=index,
                arguments=item.arguments,
                name=item.name,
            )
            yield self._event("response.output_item.done", output_index=index, item=item)
        yield self._event(f"response.{whole.status}", response=whole)

    def failed(self, error: RequestError) -> StreamEvent:
        """The last event of a response that broke off; `error` repeats it as everywhere else here, which is what the SDKs raise."""
        about = {"code": error.code, "message": str(error), "param": error.param}
        return self._event("error", **about, error=about | {"type": error.kind})

    def completion(self) -> Completion:
        return fold(self.events)

    def _greeting(self) -> Iterator[StreamEvent]:
        yield self._event("response.created", response=self.blank)
        yield self._event("response.in_progress", response=self.blank)

    def _message(self) -> Iterator[StreamEvent]:
        if not self._number:
            yield from self._greeting()
        item = OutputMessage(
            type="message", id=f"msg_{self.stem}", status="in_progress", role="assistant", content=[]
        )
        yield self._event("response.output_item.added", output_index=0, item=item)

    def _opened(self) -> Iterator[StreamEvent]:
        if not self._open:
            self._open = True
            yield from self._message()
            yield self._part("added", 0, text_part("", (), logprobs=False))

    def _text_done(self, part: OutputText | OutputRefusal) -> Iterator[StreamEvent]:
        assert isinstance(part, OutputText)
        yield self._event(
            "response.output_text.done",
            item_id=f"msg_{self.stem}",
            output_index=0,
            content_index=0,
            text=part.text,
            logprobs=part.logprobs,
        )
        yield self._part("done", 0, part)

    def _refusal(self, event: Refusal) -> Iterator[StreamEvent]:
        at = 0
        if self._open:
            yield from self._text_done(text_part(before_refusal(self.events), (), logprobs=False))
            at = 1
        else:
            yield from self._message()
        place: dict[str, Any] = {"item_id": f"msg_{self.stem}", "output_index": 0, "content_index": at}
        yield self._part("added", at, OutputRefusal(type="refusal", refusal=""))
        yield self._event("response.refusal.delta", **place, delta=event.text)
        yield self._event("response.refusal.done", **place, refusal=event.text)
        yield self._part("done", at, OutputRefusal(type="refusal", refusal=event.text))

    def _part(self, what: str, at: int, part: OutputText | OutputRefusal) -> StreamEvent:
        return self._event(
            f"response.content_part.{what}",
            item_id=f"msg_{self.stem}",
            output_index=0,
            content_index=at,
            part=part,
        )

    def _event(self, kind: str, **fields: Any) -> StreamEvent:
        event = StreamEvent(type=kind, sequence_number=self._number, **fields)
        self._number += 1
        return event
