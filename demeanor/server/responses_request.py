"""The body of /v1/responses and the queries of a kept response: every field that OpenAI documents, honoured or refused by name; and its Turn.

In: a ResponseRequest, checked as pydantic builds it, and the conversation so far. Out: the Turn. null always means "not set".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from demeanor.core.errors import RequestError
from demeanor.core.types import Decoding, Message, OutputFormat, ToolCall, Turn
from demeanor.server.approvals import MAX_TOKEN, ApprovalField, CallDecision, request_parts
from demeanor.server.chat_request import MAX_MESSAGES, MAX_TOOLS, FunctionTool, check_tool_names, tool_spec
from demeanor.server.schemas import (
    MAX_LIMIT,
    MAX_LOGPROBS,
    Body,
    FunctionName,
    Label,
    Value,
    never,
    one_of,
    only,
    refusing,
    wrong,
)

MAX_PAGE = 100
INCLUDED = "message.output_text.logprobs"
ABOUT = "_response"
"""The key of a turn's metadata under which a response keeps what a turn has no field for."""


def _type(value: Any) -> Any:
    """The type of an object of a union, before it is checked and after; a message may leave it out."""
    return (value.get("type") or "message") if isinstance(value, dict) else value.type


class InputText(Body):
    """A piece of what somebody says; an earlier answer's pieces can be sent back as they came."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[dict[str, Any]] | None = None


class RefusalPart(Body):
    """An earlier refusal, sent back."""

    type: Literal["refusal"]
    refusal: str


Part: TypeAlias = Annotated[
    Annotated[InputText, Tag("<text>")] | Annotated[RefusalPart, Tag("<refusal>")],
    Discriminator(lambda value: "<refusal>" if _type(value) == "refusal" else "<text>"),
    one_of("type", ["input_text", "output_text", "text", "refusal"]),
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<parts>")],
    Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"),
]


@refusing(phase=never("answers have one phase"))
class MessageItem(Body):
    """A message; the `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class CallItem(Body):
    """A call that the assistant made earlier."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=128)]
    name: FunctionName
    arguments: str
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class CallOutputItem(Body):
    """The result of a tool call, run by the client."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=128)]
    output: Content
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class ApprovalRequestItem(Body):
    """A call that waited for a person, sent back as it came; `id` holds the token."""

    type: Literal["mcp_approval_request"]
    id: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN + 200)]
    name: FunctionName
    arguments: str
    server_label: str


class ApprovalResponseItem(Body):
    """A person's decision on a call that waited."""

    type: Literal["mcp_approval_response"]
    approval_request_id: Annotated[str, Field(min_length=1, max_length=MAX_TOKEN + 200)]
    approve: bool
    reason: str | None = Field(None, max_length=1000, description="told to the model with a denial")
    id: str | None = None


Item: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")]
    | Annotated[ApprovalRequestItem, Tag("<mcp_approval_request>")]
    | Annotated[ApprovalResponseItem, Tag("<mcp_approval_response>")],
    Discriminator(lambda value: f"<{_type(value)}>"),
    one_of(
        "type",
        [
            "message",
            "function_call",
            "function_call_output",
            "mcp_approval_request",
            "mcp_approval_response",
        ],
    ),
]


@refusing(defer_loading=only(False, because="tools are shown at once"))
class ResponsesTool(FunctionTool):
    """A function that the model may ask the client to call."""

    type: Literal["function"]


class PlainFormat(Body):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class ResponsesSchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


Format: TypeAlias = Annotated[
    Annotated[PlainFormat, Tag("<plain>")] | Annotated[ResponsesSchemaFormat, Tag("<schema>")],
    Discriminator(lambda value: "<schema>" if _type(value) == "json_schema" else "<plain>"),
    one_of("type", ["text", "json_object", "json_schema"]),
]


@refusing(verbosity=never("answers have no verbosity control"))
class TextField(Body):
    """The format of the answer."""

    format: Format | None = None


class ResponsesToolChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


@refusing(
    truncation=only("disabled", because="a conversation that is too long is refused, not cut"),
    service_tier=only("auto", "default", because="there is one tier"),
    background=only(False, because="an answer is given while you wait"),
    stream_options=only({}, {"include_obfuscation": False}, because="events are not padded"),
    access_programs=never("there are no programs to be let in by"),
    background_options=never("an answer is given while you wait"),
    image=never("text only"),
    context_management=never("a conversation is not compacted"),
    conversation=never("use previous_response_id"),
    max_tool_calls=never("the stack's tools layer has its own limit"),
    moderation=never("rules belong in the stack's policy layer"),
    prompt=never("prompts are the stack's prompt layer"),
    prompt_cache_key=never("there is no prompt cache to steer"),
    prompt_cache_options=never("there is no prompt cache to steer"),
    prompt_cache_retention=never("there is no prompt cache to steer"),
    reasoning=never("the model has no separate reasoning"),
    safety_identifier=never("use user"),
)
class ResponseRequest(Body):
    """The body of POST /v1/responses."""

    model: str = Field(description="a variant's id, see GET /v1/models")
    input: Annotated[
        Annotated[str, Field(min_length=1), Tag("<text>")]
        | Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES), Tag("<items>")],
        Discriminator(lambda value: "<items>" if isinstance(value, list) else "<text>"),
    ]
    instructions: str | None = Field(
        None, description="of the developer, before everything else; not kept for the next response"
    )
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_LIMIT)
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    text: TextField | None = None
    tools: list[Annotated[ResponsesTool, one_of("type", ["function"])]] | None = Field(
        None, max_length=MAX_TOOLS
    )
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")]
            | Annotated[ResponsesToolChoice, Tag("<function>")],
            Discriminator(
                lambda value: "<function>" if isinstance(value, dict | ResponsesToolChoice) else "<word>"
            ),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call is returned")
    stream: bool | None = None
    store: bool | None = Field(
        None, description="keep it for GET and previous_response_id; null: if the stack records turns"
    )
    previous_response_id: str | None = Field(None, min_length=1, max_length=256)
    metadata: dict[Label, Value] | None = Field(None, max_length=16)
    user: str | None = Field(None, min_length=1, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def _items_have_types(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("input"), list):
            items = [
                {"type": "message", **item} if isinstance(item, dict) and "type" not in item else item
                for item in value["input"]
            ]
            return {**value, "input": items}
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [tool.name for tool in self.tools or ()]
        check_tool_names(names, self.tool_choice, self.chosen_tool, "name")
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", f'needs include: ["{INCLUDED}"]', "invalid_value")
        if ABOUT in (self.metadata or {}):
            raise wrong(f"metadata.{ABOUT}", "this name is the server's own; use another", "invalid_value")
        if self.user is not None and "user" in (self.metadata or {}):
            raise wrong("metadata.user", "already given as the field user", "invalid_value")
        return self

    @property
    def logprobs(self) -> bool:
        return INCLUDED in (self.include or ())

    @property
    def parallel(self) -> bool:
        return self.parallel_tool_calls is not False

    @property
    def chosen_tool(self) -> str:
        """tool_choice as a Turn has it: auto, none, required, or a function's name."""
        if isinstance(self.tool_choice, ResponsesToolChoice):
            return self.tool_choice.name
        return self.tool_choice or "auto"

    @property
    def format(self) -> PlainFormat | ResponsesSchemaFormat:
        """The format of the answer; any text unless the request says otherwise."""
        wanted = self.text.format if self.text else None
        return PlainFormat(type="text") if wanted is None else wanted

    @property
    def output_format(self) -> OutputFormat | None:
        """The format as a Turn has it; None where any text will do."""
        if isinstance(self.format, ResponsesSchemaFormat):
            said = self.format
            return OutputFormat(
                "json_schema", json.dumps(said.schema_), said.name, said.description, said.strict
            )
        return OutputFormat("json_object") if self.format.type == "json_object" else None


@refusing(
    stream=only("false", because="a kept response is whole"),
    starting_after=never("a kept response is whole"),
    include_obfuscation=only("false", because="events are not padded"),
    include=never("log-probabilities are there if they were asked for"),
)
class ResponseQuery(Body):
    """The query of GET /v1/responses/{id}."""


@refusing(include=never("items are shown whole"))
class PageQuery(Body):
    """The query of GET /v1/responses/{id}/input_items; the latest item is first unless `order` is asc."""

    limit: int = Field(20, ge=1, le=MAX_PAGE, strict=False)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, min_length=1, max_length=256)

    def select(self, items: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
        """This page of items that are given oldest first, and whether more follow. Raises RequestError if `after` is none of them."""
        ordered = list(items) if self.order == "asc" else list(reversed(items))
        ids = [item["id"] for item in ordered]
        if self.after is not None and self.after not in ids:
            raise RequestError(
                f"after: no item of this response has the id '{self.after}'.",
                param="after",
                code="invalid_value",
            )
        start = 0 if self.after is None else ids.index(self.after) + 1
        return ordered[start : start + self.limit], start + self.limit < len(ordered)


def input_messages(items: str | Sequence[Item]) -> tuple[Message, ...]:
    """Input items as messages; neighbouring calls are one message of the assistant's. Decisions are no messages."""
    if isinstance(items, str):
        return (Message("user", items),)
    found: list[Message] = []
    for item in items:
        if isinstance(item, MessageItem):
            found.append(Message(item.role, _plain(item.content)))
        elif isinstance(item, CallOutputItem):
            found.append(Message("tool", _plain(item.output), tool_call_id=item.call_id))
        elif not isinstance(item, ApprovalResponseItem):
            call_id = item.call_id if isinstance(item, CallItem) else request_parts(item.id)[0]
            call = ToolCall(call_id, item.name, item.arguments)
            last = found[-1] if found else None
            if last is not None and last.role == "assistant" and last.tool_calls:
                found[-1] = Message("assistant", last.content, tool_calls=(*last.tool_calls, call))
            else:
                found.append(Message("assistant", "", tool_calls=(call,)))
    return tuple(found)


def approval_of(items: str | Sequence[Item]) -> ApprovalField | None:
    """The decisions among input items; None without any. Raises RequestError (400) if they are of several answers."""
    given = (
        [] if isinstance(items, str) else [item for item in items if isinstance(item, ApprovalResponseItem)]
    )
    if not given:
        return None
    parts = [request_parts(item.approval_request_id) for item in given]
    if len({token for _, token in parts}) > 1:
        raise RequestError(
            "input: approvals of several answers; wanted those of the last one.",
            param="input",
            code="invalid_approval",
        )
    decisions = [
        CallDecision(call_id=call_id, approve=item.approve, reason=item.reason)
        for (call_id, _), item in zip(parts, given)
    ]
    return ApprovalField(token=parts[0][1], decisions=decisions)


def _plain(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, InputText) else part.refusal for part in content)


def response_turn(
    body: ResponseRequest,
    defaults: Decoding,
    earlier: tuple[Message, ...],
    *,
    user: str | None,
    id: str,
    recorded: bool,
) -> Turn:
    """The turn to answer: instructions, the earlier conversation, then the input. Raises RequestError for a result without its call."""
    instructions = (Message("developer", body.instructions),) if body.instructions else ()
    given = input_messages(body.input)
    calls = {call.id for message in (*earlier, *given) for call in message.tool_calls}
    for message in given:
        if message.role == "tool" and message.tool_call_id not in calls:
            raise RequestError(
                f"input: no earlier function_call has the call_id '{message.tool_call_id}'.",
                param="input",
                code="invalid_value",
            )
    about = {
        "format": body.format.model_dump(by_alias=True, exclude_unset=True),
        "instructions": body.instructions,
        "previous": body.previous_response_id,
        "store": recorded if body.store is None else body.store,
        "parallel": body.parallel,
        "before": len(instructions) + len(earlier),
    }
    metadata = dict(body.metadata or {})
    if body.user:
        metadata["user"] = body.user
    metadata[ABOUT] = json.dumps(about)
    decoding = replace(
        defaults,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        max_tokens=body.max_output_tokens or defaults.max_tokens,
        form=body.output_format,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return Turn(
        (*instructions, *earlier, *given),
        decoding,
        tuple(tool_spec(tool) for tool in body.tools or ()),
        body.chosen_tool,
        id,
        user or body.user or "anonymous",
        metadata=metadata,
    )


def response_fields(turn: Turn) -> Mapping[str, Any]:
    """What a response keeps of its request beside the turn: format, instructions, previous, store, parallel, before."""
    return dict(json.loads(turn.metadata.get(ABOUT, "{}")))
