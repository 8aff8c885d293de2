"""The answers of /v1/responses in OpenAI's shape: the response, its output and input items, and the events of a streamed one in order.

In: a turn and its events. Out: pydantic models, and event models numbered in sequence. The `demeanor` field is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal, TypeAlias

from pydantic import Field

from demeanor.core.errors import RequestError
from demeanor.core.types import Completion, Event, Message, Refusal, Text, ToolCall, Turn, fold
from demeanor.server.approvals import WaitingCalls, request_id
from demeanor.server.chat import (
    UrlCitation,
    citations,
    cost_field,
    finish_reason,
    sent_calls,
    token_logprobs,
    usage_is_told,
)
from demeanor.server.responses_request import ABOUT, response_fields
from demeanor.server.schemas import ResponseObject


class UrlAnnotation(UrlCitation):
    type: Literal["url_citation"]


class OutputText(ResponseObject):
    type: Literal["output_text"]
    text: str
    annotations: list[UrlAnnotation]
    logprobs: list[dict[str, Any]]


class OutputRefusal(ResponseObject):
    type: Literal["refusal"]
    refusal: str


Status: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(ResponseObject):
    type: Literal["message"]
    id: str
    status: Status
    role: Literal["assistant"]
    content: list[OutputText | OutputRefusal]


class OutputCall(ResponseObject):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Status


class OutputApprovalRequest(ResponseObject):
    """A call that waits for a person; the decision names its `id`."""

    type: Literal["mcp_approval_request"]
    id: str
    name: str
    arguments: str
    server_label: str


OutputItem: TypeAlias = OutputMessage | OutputCall | OutputApprovalRequest


class Details(ResponseObject):
    cached_tokens: int = 0


class ReasoningDetails(ResponseObject):
    reasoning_tokens: int = 0


class ResponseUsage(ResponseObject):
    input_tokens: int
    input_tokens_details: Details
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int
    cost_usd: float | None = None


class Incomplete(ResponseObject):
    reason: Literal["max_output_tokens", "content_filter"]


class ResponseAnswer(ResponseObject):
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


class StreamEvent(ResponseObject):
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


class Deleted(ResponseObject):
    """A response that is gone."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(ResponseObject):
    """What a kept response was requested with."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool = Field(False)


def output(
    completion: Completion, stem: str, *, logprobs: bool, parallel: bool, waiting: WaitingCalls | None = None
) -> list[OutputItem]:
    """The items of a finished turn: a message if there is text or a refusal, then the calls for the client to run or decide on."""
    reason = finish_reason(completion)
    status: Status = "incomplete" if reason in ("length", "content_filter") else "completed"
    text = before_refusal(completion.events)
    content: list[OutputText | OutputRefusal] = []
    if text or (completion.refusal is None and not completion.tool_calls):
        content.append(
            text_part(text, completion.events if completion.refusal is None else (), logprobs=logprobs)
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
            _asked(call, waiting)
            if waiting is not None and call in waiting.calls
            else OutputCall(
                type="function_call",
                id=f"fc_{stem}_{i}",
                call_id=call.id,
                name=call.name,
                arguments=call.arguments,
                status=status,
            )
            for i, call in enumerate(sent_calls(completion, parallel=parallel))
        ]
    return items


def _asked(call: ToolCall, waiting: WaitingCalls) -> OutputApprovalRequest:
    return OutputApprovalRequest(
        type="mcp_approval_request",
        id=request_id(call.id, waiting.token),
        name=call.name,
        arguments=call.arguments,
        server_label="stack",
    )


def before_refusal(events: Sequence[Event]) -> str:
    """The text up to a refusal; the text of an inner layer after it is not sent."""
    sent = takewhile(lambda e: not isinstance(e, Refusal), events)
    return "".join(e.text for e in sent if isinstance(e, Text))


def text_part(text: str, events: Sequence[Event], *, logprobs: bool) -> OutputText:
    """A text with its citations and, if asked for, its log-probabilities."""
    spans = [UrlAnnotation(type="url_citation", **a.url_citation.model_dump()) for a in citations(events)]
    return OutputText(
        type="output_text", text=text, annotations=spans, logprobs=listed_logprobs(events) if logprobs else []
    )


def listed_logprobs(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Log-probabilities of these events' tokens."""
    return [x.model_dump() for x in token_logprobs(events).content or ()]


def _ending(completion: Completion) -> tuple[Status, Incomplete | None]:
    match finish_reason(completion):
        case "length":
            return "incomplete", Incomplete(reason="max_output_tokens")
        case "content_filter":
            return "incomplete", Incomplete(reason="content_filter")
        case _:
            return "completed", None


def _usage(completion: Completion) -> ResponseUsage | None:
    if not usage_is_told(completion):
        return None
    read, written = completion.prompt_tokens, completion.completion_tokens
    return ResponseUsage(
        input_tokens=read,
        input_tokens_details=Details(cached_tokens=completion.cached_tokens),
        output_tokens=written,
        output_tokens_details=ReasoningDetails(reasoning_tokens=0),
        total_tokens=read + written,
        **cost_field([completion]),
    )


def blank_response(turn: Turn, created: int) -> ResponseAnswer:
    """The response before there is any output: what was requested."""
    about = response_fields(turn)
    tool_choice: str | dict[str, str] = turn.tool_choice
    if turn.tool_choice not in ("auto", "none", "required"):
        tool_choice = {"type": "function", "name": turn.tool_choice}
    tools = [
        {
            "type": "function",
            "name": t.name,
            "description": t.description,
            "parameters": dict(t.parameters),
            "strict": bool(t.strict),
        }
        for t in turn.tools
    ]
    return ResponseAnswer(
        id=turn.id,
        object="response",
        created_at=created,
        status="in_progress",
        error=None,
        incomplete_details=None,
        instructions=about.get("instructions"),
        max_output_tokens=turn.decoding.max_tokens,
        model=turn.variant,
        output=[],
        parallel_tool_calls=bool(about.get("parallel", True)),
        previous_response_id=about.get("previous"),
        store=bool(about.get("store")),
        temperature=turn.decoding.temperature,
        top_p=turn.decoding.top_p,
        text={"format": about.get("format", {"type": "text"})},
        tool_choice=tool_choice,
        tools=tools,
        truncation="disabled",
        usage=None,
        user=turn.metadata.get("user"),
        metadata={k: v for k, v in turn.metadata.items() if k not in ("user", ABOUT)},
    )


def finished_response(
    blank: ResponseAnswer, completion: Completion, *, logprobs: bool, waiting: WaitingCalls | None = None
) -> ResponseAnswer:
    """The response with its output. Raises RequestError (503) if the turn was cancelled from inside."""
    status, why = _ending(completion)
    items = output(
        completion, stem_of(blank), logprobs=logprobs, parallel=blank.parallel_tool_calls, waiting=waiting
    )
    fields = {"status": status, "incomplete_details": why, "usage": _usage(completion), "output": items}
    return blank.model_copy(update=fields)


def stem_of(response: ResponseAnswer) -> str:
    """The part of a response's id that the ids of its items share."""
    return response.id.removeprefix("resp_")


def input_items(turn: Turn) -> list[dict[str, Any]]:
    """The items that a kept response was requested with, oldest first, without the earlier conversation."""
    own = turn.messages[int(response_fields(turn).get("before", 0)) :]
    stem = turn.id.removeprefix("resp_")
    return [item for i, message in enumerate(own) for item in _input_items(message, f"{stem}_{i}")]


def _input_items(message: Message, stem: str) -> list[dict[str, Any]]:
    if message.role == "tool":
        output = {"call_id": message.tool_call_id, "output": message.content}
        return [{"type": "function_call_output", "id": f"fco_{stem}", **output}]
    items: list[dict[str, Any]] = []
    if message.content or not message.tool_calls:
        kind = "output_text" if message.role == "assistant" else "input_text"
        items.append(
            {
                "type": "message",
                "id": f"msg_{stem}",
                "role": message.role,
                "status": "completed",
                "content": [{"type": kind, "text": message.content}],
            }
        )
    for i, call in enumerate(message.tool_calls):
        items.append(
            {
                "type": "function_call",
                "id": f"fc_{stem}_{i}",
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "status": "completed",
            }
        )
    return items


class StreamedResponse:
    """The events of one streamed response, in OpenAI's order; `add` and `end` give those to send now."""

    def __init__(self, blank: ResponseAnswer, *, logprobs: bool) -> None:
        self.blank, self.logprobs = blank, logprobs
        self.events: list[Event] = []
        self._message_id = f"msg_{stem_of(blank)}"
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
            yield from self._open_text()
            logprobs = listed_logprobs([event]) if self.logprobs else []
            yield self._content("output_text.delta", 0, delta=event.text, logprobs=logprobs)

    def end(self, response: ResponseAnswer) -> Iterator[StreamEvent]:
        """Close what is open and send the whole response."""
        if not self._number:
            yield from self._start()
        for index, item in enumerate(response.output):
            if isinstance(item, OutputMessage):
                if not self._refused:
                    yield from self._open_text()
                    yield from self._close_text(item.content[0])
            elif isinstance(item, OutputCall):
                yield from self._call(index, item)
            else:
                yield self._event("output_item.added", output_index=index, item=item)
            yield self._event("output_item.done", output_index=index, item=item)
        yield self._event(response.status, response=response)

    def failed(self, error: RequestError) -> StreamEvent:
        """The last event of a response that broke off; `error` repeats it in the shape of all other errors, which the SDKs raise."""
        about = {"code": error.code, "message": str(error), "param": error.param}
        return self._numbered("error", **about, error=about | {"type": error.kind})

    def completion(self) -> Completion:
        return fold(self.events)

    def _start(self) -> Iterator[StreamEvent]:
        yield self._event("created", response=self.blank)
        yield self._event("in_progress", response=self.blank)

    def _open_message(self) -> Iterator[StreamEvent]:
        if not self._number:
            yield from self._start()
        item = OutputMessage(
            type="message", id=self._message_id, status="in_progress", role="assistant", content=[]
        )
        yield self._event("output_item.added", output_index=0, item=item)

    def _open_text(self) -> Iterator[StreamEvent]:
        if not self._open:
            self._open = True
            yield from self._open_message()
            yield self._content("content_part.added", 0, part=text_part("", (), logprobs=False))

    def _close_text(self, part: OutputText | OutputRefusal) -> Iterator[StreamEvent]:
        assert isinstance(part, OutputText)
        yield self._content("output_text.done", 0, text=part.text, logprobs=part.logprobs)
        yield self._content("content_part.done", 0, part=part)

    def _refusal(self, event: Refusal) -> Iterator[StreamEvent]:
        index = 0
        if self._open:
            index = 1
            yield from self._close_text(text_part(before_refusal(self.events), (), logprobs=False))
        else:
            yield from self._open_message()
        yield self._content("content_part.added", index, part=OutputRefusal(type="refusal", refusal=""))
        yield self._content("refusal.delta", index, delta=event.text)
        yield self._content("refusal.done", index, refusal=event.text)
        part = OutputRefusal(type="refusal", refusal=event.text)
        yield self._content("content_part.done", index, part=part)

    def _call(self, index: int, item: OutputCall) -> Iterator[StreamEvent]:
        started = item.model_copy(update={"arguments": "", "status": "in_progress"})
        place = {"item_id": item.id, "output_index": index}
        yield self._event("output_item.added", output_index=index, item=started)
        yield self._event("function_call_arguments.delta", **place, delta=item.arguments)
        yield self._event("function_call_arguments.done", **place, arguments=item.arguments, name=item.name)

    def _content(self, kind: str, index: int, **fields: Any) -> StreamEvent:
        """An event of one part of the message."""
        return self._event(kind, item_id=self._message_id, output_index=0, content_index=index, **fields)

    def _event(self, kind: str, **fields: Any) -> StreamEvent:
        return self._numbered(f"response.{kind}", **fields)

    def _numbered(self, kind: str, **fields: Any) -> StreamEvent:
        event = StreamEvent(type=kind, sequence_number=self._number, **fields)
        self._number += 1
        return event
