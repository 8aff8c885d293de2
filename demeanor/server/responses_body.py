"""The request of /v1/responses: every field that OpenAI documents, honoured or refused by name; and its items as messages.

In: parsed JSON. Out: a checked ResponseRequest, our Messages and ToolSpecs. null always means "not set".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from demeanor.core.errors import unknown
from demeanor.core.types import Message, OutputFormat, ToolCall, ToolSpec
from demeanor.server.bodies import (
    MAX_LIMIT,
    MAX_LOGPROBS,
    Body,
    FunctionName,
    Label,
    Value,
    never,
    one_of,
    only,
    wrong,
)
from demeanor.server.protocol import MAX_MESSAGES, MAX_TOOLS

INCLUDED = "message.output_text.logprobs"
OURS = "_response"
"""The key of a turn's metadata under which a response keeps what a turn has no place for."""


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
    Discriminator(
        lambda value: (
            "<refusal>"
            if (value.get("type") if isinstance(value, dict) else value.type) == "refusal"
            else "<text>"
        )
    ),
    one_of("type", ["input_text", "output_text", "text", "refusal"]),
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<parts>")],
    Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"),
]


class MessageItem(Body):
    """A message; the `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    phase: Annotated[Any, never("answers have one phase")] = None


class CallItem(Body):
    """A call that the assistant made earlier."""

    type: Literal["function_call"]
    call_id: Annotated[str, Field(min_length=1, max_length=128)]
    name: FunctionName
    arguments: str
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class OutputItem(Body):
    """What a tool that the client ran has answered."""

    type: Literal["function_call_output"]
    call_id: Annotated[str, Field(min_length=1, max_length=128)]
    output: str
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


def _item(value: Any) -> str:
    return f"<{(value.get('type') or 'message') if isinstance(value, dict) else value.type}>"


def _typed(value: Any) -> Any:
    return {"type": "message", **value} if isinstance(value, dict) and "type" not in value else value


Item: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<function_call>")]
    | Annotated[OutputItem, Tag("<function_call_output>")],
    Discriminator(_item),
    one_of("type", ["message", "function_call", "function_call_output"]),
]


class FunctionTool(Body):
    """A function that the model may ask the client to call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    defer_loading: Annotated[Any, only(False, because="tools are shown at once")] = None


class PlainFormat(Body):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


Format: TypeAlias = Annotated[
    Annotated[PlainFormat, Tag("<plain>")] | Annotated[SchemaFormat, Tag("<schema>")],
    Discriminator(
        lambda v: (
            "<schema>" if (v.get("type") if isinstance(v, dict) else v.type) == "json_schema" else "<plain>"
        )
    ),
    one_of("type", ["text", "json_object", "json_schema"]),
]


class TextField(Body):
    """What form the answer has."""

    format: Format | None = None
    verbosity: Annotated[Any, never("answers have no verbosity control")] = None


class NamedChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    name: FunctionName


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
    tools: list[Annotated[FunctionTool, one_of("type", ["function"])]] | None = Field(
        None, max_length=MAX_TOOLS
    )
    tool_choice: (
        Annotated[
            Annotated[Literal["none", "auto", "required"], Tag("<word>")]
            | Annotated[NamedChoice, Tag("<function>")],
            Discriminator(lambda value: "<function>" if isinstance(value, dict | NamedChoice) else "<word>"),
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

    truncation: Annotated[
        Any, only("disabled", because="a conversation that is too long is refused, not cut")
    ] = None
    service_tier: Annotated[Any, only("auto", "default", because="there is one tier")] = None
    background: Annotated[Any, only(False, because="an answer is given while you wait")] = None
    stream_options: Annotated[
        Any, only({}, {"include_obfuscation": False}, because="events are not padded")
    ] = None
    access_programs: Annotated[Any, never("there are no programs to be let in by")] = None
    background_options: Annotated[Any, never("an answer is given while you wait")] = None
    image: Annotated[Any, never("text only")] = None
    context_management: Annotated[Any, never("a conversation is not compacted")] = None
    conversation: Annotated[Any, never("use previous_response_id")] = None
    max_tool_calls: Annotated[Any, never("the stack's tools layer has its own limit")] = None
    moderation: Annotated[Any, never("rules belong in the stack's policy layer")] = None
    prompt: Annotated[Any, never("prompts are the stack's prompt layer")] = None
    prompt_cache_key: Annotated[Any, never("there is no prompt cache to steer")] = None
    prompt_cache_options: Annotated[Any, never("there is no prompt cache to steer")] = None
    prompt_cache_retention: Annotated[Any, never("there is no prompt cache to steer")] = None
    reasoning: Annotated[Any, never("the model has no separate reasoning")] = None
    safety_identifier: Annotated[Any, never("use user")] = None

    @model_validator(mode="before")
    @classmethod
    def _items_have_types(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("input"), list):
            return {**value, "input": [_typed(x) for x in value["input"]]}
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [tool.name for tool in self.tools or ()]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise wrong(f"tools[{i}].name", f"'{name}' is declared twice", "invalid_value")
        if self.tool_choice == "required" and not names:
            raise wrong("tool_choice", "'required' needs tools", "invalid_value")
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.name not in names:
            raise wrong(
                "tool_choice.name", unknown(self.tool_choice.name, names, noun="tool"), "invalid_value"
            )
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", f'needs include: ["{INCLUDED}"]', "invalid_value")
        if OURS in (self.metadata or {}):
            raise wrong(f"metadata.{OURS}", "this name is the server's own; use another", "invalid_value")
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
    def choice(self) -> str:
        """tool_choice as a Turn has it: auto, none, required, or a function's name."""
        return (
            self.tool_choice.name if isinstance(self.tool_choice, NamedChoice) else self.tool_choice or "auto"
        )

    @property
    def form(self) -> OutputFormat | None:
        wanted = self.text.format if self.text else None
        if isinstance(wanted, SchemaFormat):
            return OutputFormat("json_schema", json.dumps(wanted.schema_))
        return OutputFormat("json_object") if wanted is not None and wanted.type == "json_object" else None

    @property
    def offered(self) -> tuple[ToolSpec, ...]:
        return tuple(
            ToolSpec(
                t.name,
                t.description or "",
                t.parameters or {"type": "object", "properties": {}},
                bool(t.strict),
            )
            for t in self.tools or ()
        )


def messages(items: str | Sequence[Item]) -> tuple[Message, ...]:
    """Input items as messages; neighbouring calls are one message of the assistant's."""
    if isinstance(items, str):
        return (Message("user", items),)
    found: list[Message] = []
    for item in items:
        if isinstance(item, MessageItem):
            found.append(Message(item.role, _plain(item.content)))
        elif isinstance(item, OutputItem):
            found.append(Message("tool", item.output, tool_call_id=item.call_id))
        else:
            call = ToolCall(item.call_id, item.name, item.arguments)
            last = found[-1] if found else None
            if last is not None and last.role == "assistant" and last.tool_calls:
                found[-1] = Message("assistant", last.content, tool_calls=(*last.tool_calls, call))
            else:
                found.append(Message("assistant", "", tool_calls=(call,)))
    return tuple(found)


def _plain(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text if isinstance(part, InputText) else part.refusal for part in content)
