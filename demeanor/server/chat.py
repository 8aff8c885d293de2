"""POST /v1/chat/completions: one or more answers to a conversation, whole or streamed, in OpenAI's shape.

In: a ChatRequest, then the events of each choice. Out: pydantic models; only fields that were set are written. The `demeanor` field is ours:
every event of every layer, in the order in which it happened, with text as spans of the answer, so that nothing is sent twice.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from demeanor.core.errors import DecodingError, DemeanorError, RequestError, TextError
from demeanor.core.types import (
    Citation,
    Completion,
    Done,
    Event,
    LeftOut,
    Passage,
    Prompted,
    PromptRead,
    Refusal,
    Respond,
    RuleHit,
    Text,
    Timing,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    Turn,
    Unsupported,
    Upstream,
    Usage,
    fold,
)
from demeanor.server.approvals import WaitingCalls, given_back
from demeanor.server.assistant import ModelCard, TraceView, routed
from demeanor.server.chat_request import ChatRequest, chat_messages, chat_turns
from demeanor.server.client_settings import refuse_fixed
from demeanor.server.endpoint import GENERATED, documented, json_response, read_body, state_of, with_errors
from demeanor.server.request_context import CURRENT_REQUEST
from demeanor.server.schemas import ResponseObject, StreamOptions
from demeanor.server.shown_events import shown_entries
from demeanor.server.streaming import EventStream, Step, all_events, interleaved

C = TypeVar("C", bound="CompletionBase")
router = APIRouter()


class FunctionCall(ResponseObject):
    name: str
    arguments: str


class CallAnswer(ResponseObject):
    """A tool call; `index` only in streams."""

    index: int | None = None
    id: str
    type: Literal["function"]
    function: FunctionCall


class UrlCitation(ResponseObject):
    start_index: int
    end_index: int
    title: str
    url: str


class Annotation(ResponseObject):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class TopLogprob(ResponseObject):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenAnswer(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(ResponseObject):
    content: list[TokenAnswer] | None
    refusal: None


class MessageAnswer(ResponseObject):
    """A whole message, or (all fields optional) what a chunk adds to one."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[CallAnswer] | None = None
    annotations: list[Annotation] | None = None


class Choice(ResponseObject):
    index: int
    message: MessageAnswer
    logprobs: Logprobs | None
    finish_reason: str


class ChunkChoice(ResponseObject):
    index: int
    delta: MessageAnswer
    logprobs: Logprobs | None
    finish_reason: str | None


class PromptDetails(ResponseObject):
    """Of the prompt's tokens, those that were known from earlier requests and not read again."""

    cached_tokens: int


class UsageAnswer(ResponseObject):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    cost_usd: float | None = None


class CompletionBase(ResponseObject):
    """The fields that a response and its chunks share, here and in /v1/completions; `choices` in the shape of the endpoint."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[Any]
    usage: UsageAnswer | None = None
    demeanor: dict[str, Any] | None = None


class ChatCompletion(CompletionBase):
    """The body of a plain response."""

    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: UsageAnswer | None
    demeanor: dict[str, Any]


class ChatChunk(CompletionBase):
    """One `data:` line of a streamed response."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


@router.post(
    "/v1/chat/completions",
    **documented(
        "One or more answers to a conversation", GENERATED, ChatCompletion, body=ChatRequest, event=ChatChunk
    ),
)
async def create_chat_completion(request: Request) -> Response:
    state = state_of(request)
    started = state.clock()
    body = await read_body(request, ChatRequest)
    refuse_fixed(state.assistant.client_access().settings, body)
    user = CURRENT_REQUEST.get().user
    card, respond = routed(state.assistant, body.model, user or body.user, chat_messages(body.messages))
    respond = with_errors(respond, of_message)
    request.state.stack_key = card.stack_key
    id = f"chatcmpl-{request.state.request_id.removeprefix('req_')}"
    turns = chat_turns(body, card, state.assistant.defaults(), user=user, id=id)
    choices = [ChatChoice(i, logprobs=bool(body.logprobs), parallel=body.parallel) for i in range(len(turns))]
    approver = state.approver.of(state.assistant.approval_store())
    if body.approval is not None:
        turn, approval = await approver.decided(turns[0], body.approval)
        turns, respond = [turn], given_back(respond, approver.store, approval)

    async def waiting(made: Sequence[Sequence[Event]]) -> list[dict[str, Any]]:
        found = [
            await waiting_calls(approver.waiting, turn, events, parallel=body.parallel)
            for turn, events in zip(turns, made)
        ]
        return [each.json(i) for i, each in enumerate(found) if each is not None]

    return await completion_response(
        request,
        card,
        respond,
        turns,
        choices,
        partial(ChatCompletion, id=id, object="chat.completion"),
        partial(ChatChunk, id=id, object="chat.completion.chunk") if body.stream else None,
        stream_options=body.stream_options,
        started=started,
        waiting=waiting,
    )


async def waiting_calls(
    waiting: Callable[[Turn, Sequence[Event], Sequence[ToolCall], str], Awaitable[WaitingCalls | None]],
    turn: Turn,
    events: Sequence[Event],
    *,
    parallel: bool,
) -> WaitingCalls | None:
    """The calls of an answer that wait for a person, with their token, by one of the methods of an Approver."""
    done = fold(events)
    if done.refusal is not None:
        return None
    return await waiting(turn, events, sent_calls(done, parallel=parallel), done.text)


async def nothing_waits(events: Sequence[Sequence[Event]]) -> list[dict[str, Any]]:
    """Where nothing can wait for a person."""
    return []


def of_message(error: DemeanorError, turn: Turn) -> DemeanorError:
    """The error of a message by its place in the request, not among what layers added."""
    if isinstance(error, TextError):
        return error.within(turn.messages)
    return of_tool(error, turn, "function.parameters") if isinstance(error, DecodingError) else error


def of_tool(error: DecodingError, turn: Turn, path: str) -> DecodingError:
    """The error of a tool's schema, with the tool's place in the request; any other as it is."""
    if not error.param.startswith("tools."):
        return error
    names = [tool.name for tool in turn.tools]
    name = error.param.removeprefix("tools.")
    return DecodingError(str(error), f"tools[{names.index(name)}].{path}" if name in names else "tools")


async def completion_response(
    request: Request,
    card: ModelCard,
    respond: Respond,
    turns: Sequence[Turn],
    choices: Sequence[ChoiceWriter],
    answer: Callable[..., CompletionBase],
    chunk: Callable[..., CompletionBase] | None,
    *,
    stream_options: StreamOptions | None,
    started: float,
    waiting: Callable[[Sequence[Sequence[Event]]], Awaitable[list[dict[str, Any]]]] = nothing_waits,
) -> Response:
    """Answer turns as one completion with a choice per turn, as `answer` makes it, or streamed as `chunk` makes each part."""
    state = state_of(request)
    head = {"created": int(state.now()), "model": card.id, "system_fingerprint": card.stack_key}
    shown = state.assistant.client_access().shown

    async def traced(made: Sequence[Sequence[Event]]) -> dict[str, Any]:
        found = await waiting(made)
        about = trace(card, state.clock, started, made, shown=shown)
        return {**about, **({"approvals": found} if found else {})}

    if chunk is not None:
        chunks = stream_chunks(
            interleaved(respond, turns),
            choices,
            partial(chunk, **head),
            include_usage=bool(stream_options and stream_options.include_usage),
            trace=traced,
        )
        return EventStream(chunks, request.state.request_id, experiment_header(card))
    events = await all_events(request, respond, turns)
    whole = [choice.whole(made) for choice, made in zip(choices, events)]
    demeanor = await traced(events)
    completion = answer(**head, choices=whole, usage=usage([fold(e) for e in events]), demeanor=demeanor)
    return json_response(completion, {"x-demeanor-ms": str(demeanor["ms"]), **experiment_header(card)})


def experiment_header(card: ModelCard) -> dict[str, str]:
    """The experiment and the arm that answers, as a header; empty outside of experiments."""
    return {} if card.experiment is None else {"x-demeanor-experiment": "/".join(card.experiment)}


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
    if completion.finish_reason == "length":  # also of a call that is cut
        return "length"
    return "tool_calls" if completion.tool_calls else completion.finish_reason


def sent_calls(completion: Completion, *, parallel: bool) -> Sequence[ToolCall]:
    """The tool calls for the client to run: all of them, or unless `parallel` the first."""
    return completion.tool_calls if parallel else completion.tool_calls[:1]


def tool_calls(completion: Completion, *, parallel: bool) -> list[CallAnswer]:
    """Tool calls for the client to run."""
    return [
        CallAnswer(id=c.id, type="function", function=FunctionCall(name=c.name, arguments=c.arguments))
        for c in sent_calls(completion, parallel=parallel)
    ]


def token_logprobs(events: Sequence[Event]) -> Logprobs:
    """Log-probabilities (nats) of the tokens of these events' text."""
    tokens = [token for event in events if isinstance(event, Text) for token in event.logprobs]
    return Logprobs(content=[_token(token) for token in tokens], refusal=None)


def _token(token: TokenLogprob) -> TokenAnswer:
    top = [TopLogprob(token=t, logprob=p, bytes=_known_bytes(t)) for t, p in token.top]
    return TokenAnswer(
        token=token.token, logprob=token.logprob, bytes=list(token.own_bytes), top_logprobs=top
    )


def _known_bytes(text: str) -> list[int] | None:
    """The bytes of an alternative; null for half a character, of which only the mark is known."""
    return None if "\ufffd" in text else list(text.encode("utf-8", "replace"))


def citations(events: Sequence[Event]) -> list[Annotation]:
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


def usage(completions: Sequence[Completion]) -> UsageAnswer | None:
    """Tokens read and written by all model calls of all choices; None where a model's server does not tell them."""
    if not all(map(usage_is_told, completions)):
        return None
    read, written = sum(c.prompt_tokens for c in completions), sum(c.completion_tokens for c in completions)
    return UsageAnswer(
        prompt_tokens=read,
        completion_tokens=written,
        total_tokens=read + written,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(c.cached_tokens for c in completions)),
        **cost_field(completions),
    )


def cost_field(completions: Sequence[Completion]) -> dict[str, float | None]:
    """`cost_usd` of a usage, where there are prices: null if the model of a call has none."""
    if not any(c.has_price for c in completions):
        return {}
    costs = [c.cost_usd for c in completions]
    return {"cost_usd": None if None in costs else round(sum(cost or 0.0 for cost in costs), 9)}


def usage_is_told(completion: Completion) -> bool:
    """Whether the tokens of every model call are known, not estimated."""
    return not any(isinstance(event, Usage) and event.estimated for event in completion.events)


class ChoiceWriter(Protocol):
    """Writes one choice in the shape of its endpoint, whole or part by part; `events` are those so far."""

    events: list[Event]

    def whole(self, events: list[Event]) -> Any:
        """The finished choice. Raises RequestError (503) if the turn was cancelled from inside."""

    def start(self) -> list[Any]:
        """The parts that are sent before the first part of any choice."""

    def add(self, event: Event) -> list[Any]:
        """Take an event; return the parts to send now."""

    def end(self) -> list[Any]:
        """The last parts, at least one. Raises RequestError (503) if the turn was cancelled from inside."""


async def stream_chunks(
    steps: AsyncGenerator[Step, None],
    choices: Sequence[ChoiceWriter],
    chunk: Callable[..., C],
    *,
    include_usage: bool,
    trace: Callable[[Sequence[Sequence[Event]]], Awaitable[dict[str, Any]]],
) -> AsyncGenerator[C, None]:
    """Turn the events of choices into chunks, the last of them with the trace; `chunk` makes one of its own fields.

    Raises what the turns raise, and what the end of a choice raises.
    """
    usage_field = {"usage": None} if include_usage else {}
    running, started = len(choices), False
    async with aclosing(steps):
        async for index, event in steps:
            if event is None:
                parts = choices[index].end()
                running -= 1
            else:
                parts = choices[index].add(event)
            if parts and not started:
                started = True
                for part in [part for choice in choices for part in choice.start()]:
                    yield chunk(choices=[part], **usage_field)
            for i, part in enumerate(parts, 1):
                is_last = i == len(parts) and not running and not include_usage
                trace_field = {"demeanor": await trace([c.events for c in choices])} if is_last else {}
                yield chunk(choices=[part], **usage_field, **trace_field)
    if include_usage:
        events = [choice.events for choice in choices]
        yield chunk(choices=[], usage=usage([fold(e) for e in events]), demeanor=await trace(events))


class ChatChoice:
    """A choice of a chat completion; its parts are a role, text as it comes, then the rest of the message and why it ended."""

    def __init__(self, index: int, *, logprobs: bool, parallel: bool = True) -> None:
        self.index, self.logprobs, self.parallel = index, logprobs, parallel
        self.events: list[Event] = []
        self.has_text = self.refused = False

    def whole(self, events: list[Event]) -> Choice:
        completion = fold(events)
        message = MessageAnswer(role="assistant", content=completion.text, refusal=None, annotations=[])
        logprobs = token_logprobs(events) if self.logprobs else None
        if completion.refusal is not None:
            message.refusal = completion.refusal.text
            logprobs = token_logprobs(()) if self.logprobs else None
        else:
            message.annotations = citations(completion.events)
            if completion.tool_calls:
                message.content = completion.text or None
                message.tool_calls = tool_calls(completion, parallel=self.parallel)
        reason = finish_reason(completion)
        return Choice(index=self.index, message=message, logprobs=logprobs, finish_reason=reason)

    def start(self) -> list[ChunkChoice]:
        return [self._part(MessageAnswer(role="assistant", content="", refusal=None))]

    def add(self, event: Event) -> list[ChunkChoice]:
        self.events.append(event)
        if self.refused:
            return []
        if isinstance(event, Refusal):
            self.refused = True
            delta = MessageAnswer(refusal=event.text)
            if not self.has_text:
                delta.content = event.text
            return [self._part(delta)]
        if isinstance(event, Text) and (event.text or (self.logprobs and event.logprobs)):
            self.has_text = True
            logprobs = token_logprobs([event]) if self.logprobs else None
            return [self._part(MessageAnswer(content=event.text), logprobs)]
        return []

    def end(self) -> list[ChunkChoice]:
        """Tool calls that no layer answered, then citations and the reason for the end."""
        completion = fold(self.events)
        last = self._part(MessageAnswer(), reason=finish_reason(completion))
        if completion.refusal is not None:
            return [last]
        if annotations := citations(completion.events):
            last.delta.annotations = annotations
        calls = tool_calls(completion, parallel=self.parallel)
        for i, call in enumerate(calls):
            call.index = i
        return [self._part(MessageAnswer(tool_calls=calls)), last] if calls else [last]

    def _part(
        self, delta: MessageAnswer, logprobs: Logprobs | None = None, reason: str | None = None
    ) -> ChunkChoice:
        return ChunkChoice(index=self.index, delta=delta, logprobs=logprobs, finish_reason=reason)


def trace(
    card: ModelCard,
    clock: Callable[[], float],
    started: float,
    choices: Sequence[Sequence[Event]],
    *,
    shown: TraceView = TraceView(),
) -> dict[str, Any]:
    """The `demeanor` field: which variant answered, milliseconds since `started`, and one entry per event of every choice."""
    total_ms = 1000 * (clock() - started)
    events = [
        {"choice": i, **entry}
        for i, made in enumerate(choices)
        for entry in shown_entries(trace_entries(made), shown)
    ]
    about: dict[str, Any] = {"model": card.id, "stack_key": card.stack_key, "layers": list(card.layers)}
    if card.experiment is not None:
        about["experiment"] = dict(zip(("name", "arm"), card.experiment))
    return {**about, "ms": round(total_ms, 2), "events": events}


def trace_entries(events: Sequence[Event]) -> list[dict[str, Any]]:
    """Events as `{by, kind, ...}`; neighbouring texts of one layer become one span [start, end) of the answer."""
    found: list[dict[str, Any]] = []
    at = 0
    for event in events:
        if not isinstance(event, Text):
            found.append(_entry(event))
        elif event.text:
            if found and found[-1]["kind"] == "text" and found[-1]["by"] == event.by:
                found[-1]["end"] = at + len(event.text)
            else:
                found.append({"by": event.by, "kind": "text", "start": at, "end": at + len(event.text)})
            at += len(event.text)
    return found


def _cited(citation: Citation) -> dict[str, Any]:
    """The words of the passage, and their characters in its document."""
    return {
        "cited_text": citation.cited_text,
        "source_start": citation.source_start,
        "source_end": citation.source_end,
    }


def _entry(event: Event) -> dict[str, Any]:
    """One event that is not text."""
    match event:
        case Prompted(messages, by):
            shown = [{"role": m.role, "content": m.content} for m in messages]
            about = {"version": event.version, "sha256": event.sha256}
            told = {key: value for key, value in about.items() if value}
            return {"by": by, "kind": "prompted", "messages": shown, **told}
        case PromptRead(tokens, by=by):
            return {"by": by, "kind": "prompt_read", "tokens": len(tokens)}
        case Passage(id, text, score, source, by, coverage):
            found = {"id": id, "text": text, "score": score, "coverage": coverage, "source": source}
            place = {"heading": event.heading, "start": event.start, "end": event.end, "page": event.page}
            known = {key: value for key, value in place.items() if value} if event.end else {}
            return {"by": by, "kind": "passage", **found, **known}
        case Citation(start, end, passage_id, by):
            cited = {} if event.source_start is None else _cited(event)
            found = {"start": start, "end": end, "passage_id": passage_id}
            return {"by": by, "kind": "citation", **found, **cited}
        case Unsupported(start, end, reason, passage_id, by):
            found = {"start": start, "end": end, "reason": reason, "passage_id": passage_id}
            return {"by": by, "kind": "unsupported", **found}
        case ToolCalled(call, by):
            return {
                "by": by,
                "kind": "tool_call",
                "id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                **({"approval": event.approval} if event.approval else {}),
            }
        case ToolResult(call_id, name, content, error, by):
            return {
                "by": by,
                "kind": "tool_result",
                "id": call_id,
                "name": name,
                "content": content,
                "error": error,
            }
        case ToolDecision(verdict, tools, call_id, detail, by):
            about = {"call_id": call_id, "detail": detail}
            known = {key: value for key, value in about.items() if value}
            return {"by": by, "kind": "tool_decision", "verdict": verdict, "tools": list(tools), **known}
        case Refusal(by, rule, reason, text, stage):
            return {"by": by, "kind": "refusal", "rule": rule, "reason": reason, "text": text, "stage": stage}
        case LeftOut(rule, reason, messages, by):
            return {"by": by, "kind": "left_out", "rule": rule, "reason": reason, "messages": messages}
        case Upstream(name, tried, skipped, by):
            failed = [{"name": name, "status": status} for name, status in tried]
            return {"by": by, "kind": "upstream", "name": name, "failed": failed, "skipped": list(skipped)}
        case RuleHit(rule, stage, outcome, reason, part, _, score, by):  # spans are for the operator
            about = {"rule": rule, "stage": stage, "outcome": outcome, "reason": reason, "part": part}
            known = {} if score is None else {"score": round(score, 4)}
            return {"by": by, "kind": "rule_hit", **about, **known}
        case Timing(by, ms):
            return {"by": by, "kind": "timing", "ms": round(ms, 3)}
        case Usage(prompt_tokens, completion_tokens, by, estimated, cached_tokens):
            return {
                "by": by,
                "kind": "usage",
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "cached_tokens": cached_tokens,
                **({"estimated": True} if estimated else {}),
                **({"cost_usd": event.cost_usd} if event.cost_usd is not None or event.unpriced else {}),
            }
        case Done(finish_reason, by):
            return {"by": by, "kind": "done", "finish_reason": finish_reason}
        case Text():
            raise TypeError("text becomes spans, see trace_entries()")
