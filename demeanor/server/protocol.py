"""The request of /v1/chat/completions: every field that OpenAI documents, honoured or refused by name; and vLLM's top_k and min_p.

In: parsed JSON. Out: a checked ChatRequest. null always means "not set".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from demeanor.core.errors import unknown
from demeanor.server.bodies import (
    MAX_LIMIT,
    MAX_LOGPROBS,
    Body,
    FunctionName,
    Label,
    Name,
    StreamOptions,
    TextPart,
    Value,
    never,
    one_of,
    only,
    wrong,
)
from demeanor.server.forms import NamedChoice, ResponseFormat, ToolChoice
from demeanor.server.sampling import Sampling

MAX_MESSAGES, MAX_TOOLS = 1024, 128


Part: TypeAlias = Annotated[TextPart, one_of("type", ["text"])]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<parts>")],
    Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"),
]


def plain(content: Content | None) -> str:
    """A content as one text: parts are joined by line breaks."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content or ())


class Function(Body):
    """The function of a tool call in the history; `arguments` is passed on as it is, valid JSON or not."""

    name: FunctionName
    arguments: str


class Call(Body):
    """A tool call that the assistant made earlier."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: Function


class SystemMessage(Body):
    """Instructions of the application."""

    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserMessage(Body):
    """What the user says."""

    role: Literal["user"]
    content: Content
    name: Name | None = None


class AssistantMessage(Body):
    """What the assistant said before; a message of an earlier response can be sent back as it came."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Name | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None
    annotations: list[dict[str, Any]] | None = Field(
        None,
        description="accepted so that a response's message can be sent "
        "back; citations of an old answer are not shown to the model",
    )
    audio: Annotated[Any, never("text only")] = None
    function_call: Annotated[Any, never("deprecated by OpenAI; use tool_calls")] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise wrong(
                "content",
                "field required unless tool_calls or refusal is given",
                "missing_required_parameter",
            )
        return self


class ToolMessage(Body):
    """The result of a tool call, run by the client."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: FunctionName | None = None


RequestMessage: TypeAlias = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")],
    Discriminator(lambda value: f"<{'system' if value.get('role') == 'developer' else value.get('role')}>"),
    one_of("role", ["system", "developer", "user", "assistant", "tool"]),
]


class FunctionTool(Body):
    """A function that the model may ask the client to call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="hold the arguments of every call to the schema")


class Tool(Body):
    """A tool offered with the request."""

    type: Literal["function"]
    function: FunctionTool


class ChatRequest(Sampling):
    """The body of POST /v1/chat/completions."""

    model: str = Field(description="a variant's id, see GET /v1/models")
    messages: list[RequestMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_LIMIT, description="longest answer in tokens")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_LIMIT, description="the newer name of max_tokens"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = Field(
        None, description="whether a tool may, must not or must be called, or which"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call is returned")
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    user: str | None = Field(None, min_length=1, max_length=256)
    metadata: dict[Label, Value] | None = Field(None, max_length=16)

    modalities: Annotated[Any, only(["text"], because="text only")] = None
    service_tier: Annotated[Any, only("auto", "default", because="there is one tier")] = None
    audio: Annotated[Any, never("text only")] = None
    functions: Annotated[Any, never("deprecated by OpenAI; use tools")] = None
    function_call: Annotated[Any, never("deprecated by OpenAI; use tool_choice")] = None
    moderation: Annotated[Any, never("rules belong in the stack's policy layer")] = None
    prediction: Annotated[Any, never("decoding does not take a draft")] = None
    prompt_cache_key: Annotated[Any, never("there is no prompt cache to steer")] = None
    prompt_cache_options: Annotated[Any, never("there is no prompt cache to steer")] = None
    prompt_cache_retention: Annotated[Any, never("there is no prompt cache to steer")] = None
    reasoning_effort: Annotated[Any, never("the model has no separate reasoning")] = None
    safety_identifier: Annotated[Any, never("use user")] = None
    store: Annotated[Any, never("whether a turn is stored is decided by the stack's record layer")] = None
    verbosity: Annotated[Any, never("answers have no verbosity control")] = None
    web_search_options: Annotated[Any, never("nothing is looked up outside the stack")] = None

    @property
    def parallel(self) -> bool:
        return self.parallel_tool_calls is not False

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "needs logprobs: true", "invalid_value")
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "needs stream: true", "invalid_value")
        if self.max_tokens is not None and self.limit != self.max_tokens:
            raise wrong("max_tokens", "differs from max_completion_tokens; send one of them", "invalid_value")
        if self.user is not None and "user" in (self.metadata or {}):
            raise wrong("metadata.user", "already given as the field user", "invalid_value")
        names = [tool.function.name for tool in self.tools or ()]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise wrong(f"tools[{i}].function.name", f"'{name}' is declared twice", "invalid_value")
        if self.tool_choice == "required" and not names:
            raise wrong("tool_choice", "'required' needs tools", "invalid_value")
        if isinstance(self.tool_choice, NamedChoice) and self.tool_choice.function.name not in names:
            raise wrong(
                "tool_choice.function.name",
                unknown(self.tool_choice.function.name, names, noun="tool"),
                "invalid_value",
            )
        self._results_have_calls()
        return self

    def _results_have_calls(self) -> None:
        asked: list[str] = []
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                asked += [call.id for call in message.tool_calls or ()]
            if isinstance(message, ToolMessage) and message.tool_call_id not in asked:
                raise wrong(
                    f"messages[{i}].tool_call_id",
                    "no earlier assistant message made this call; "
                    + unknown(message.tool_call_id, asked, noun="call"),
                    "invalid_value",
                )
