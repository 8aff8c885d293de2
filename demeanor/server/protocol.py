"""The request of /v1/chat/completions: every field that OpenAI documents, honoured or refused by name.

In: parsed JSON. Out: a checked ChatRequest. A field marked `never(...)` or `only(...)` is one that nothing here can
honour: it is accepted when null or at the listed no-op values, and refused by name otherwise. null always means "not set".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from demeanor.errors import unknown

MAX_STOPS, MAX_CHOICES, MAX_MESSAGES, MAX_TOOLS, MAX_LOGPROBS = 4, 8, 1024, 128, 20


def wrong(field: str, message: str, code: str) -> PydanticCustomError:
    """A validation error about `field` of the object being checked."""
    return PydanticCustomError("api", "{message}", {"message": message, "field": field, "code": code})


def only(*accepted: Any, because: str) -> AfterValidator:
    """A field of which only these no-op values (and null) are accepted, with the reason for refusing others."""
    def check(value: Any) -> Any:
        if value is None or any(value == a and isinstance(value, bool) == isinstance(a, bool) for a in accepted):
            return value
        values = f"accepted: {', '.join(json.dumps(a) for a in accepted)}" if accepted else "leave it out"
        code = "unsupported_value" if accepted else "unsupported_parameter"
        raise PydanticCustomError("api", "{message}", {"message": f"not supported: {because}; {values}", "code": code})
    return AfterValidator(check)


def never(because: str) -> AfterValidator:
    """A field that is refused by name whatever its value."""
    return only(because=because)


def one_of(field: str, known: Sequence[str]) -> BeforeValidator:
    """Check that an object's `field` is one of these, before anything else of it is looked at."""
    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            raise PydanticCustomError("api", "input should be an object", {"code": "invalid_type"})
        if field not in value:
            raise wrong(field, f"field required; one of: {', '.join(known)}", "missing_required_parameter")
        if value[field] not in known:
            raise wrong(field, unknown(str(value[field]), known, noun=field), "invalid_value")
        return value
    return BeforeValidator(check)


class Body(BaseModel):
    """Base of every object in a request: strict types, no NaN, and an unknown field is named with its nearest known one."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _knows_every_field(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in cls.model_fields:
                raise wrong(name, unknown(name, cls.model_fields, noun="field"), "unknown_parameter")
        return value


Name: TypeAlias = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$")]
FunctionName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Annotated[Any, never("there is no prompt cache to steer")] = None


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
    annotations: list[dict[str, Any]] | None = Field(None, description="accepted so that a response's message can be sent "
                                                     "back; citations of an old answer are not shown to the model")
    audio: Annotated[Any, never("text only")] = None
    function_call: Annotated[Any, never("deprecated by OpenAI; use tool_calls")] = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.refusal is None and not self.tool_calls:
            raise wrong("content", "field required unless tool_calls or refusal is given", "missing_required_parameter")
        return self


class ToolMessage(Body):
    """The result of a tool call, run by the client."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: FunctionName | None = None


RequestMessage: TypeAlias = Annotated[
    Annotated[SystemMessage, Tag("<system>")] | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")] | Annotated[ToolMessage, Tag("<tool>")],
    Discriminator(lambda value: f"<{'system' if value.get('role') == 'developer' else value.get('role')}>"),
    one_of("role", ["system", "developer", "user", "assistant", "tool"]),
]


class FunctionTool(Body):
    """A function that the model may ask the client to call."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Annotated[Any, only(False, because="arguments are not constrained to the schema while decoding")] = None


class Tool(Body):
    """A tool offered with the request."""

    type: Literal["function"]
    function: FunctionTool


class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False, because="chunks are not padded")] = None


Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=64)]
StopField: TypeAlias = Annotated[
    Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
]


Label: TypeAlias = Annotated[str, Field(max_length=64)]
Value: TypeAlias = Annotated[str, Field(max_length=512)]


class ChatRequest(Body):
    """The body of POST /v1/chat/completions."""

    MAX_LIMIT: ClassVar[int] = 2**63 - 1

    model: str = Field(description="a variant's id, see GET /v1/models")
    messages: list[RequestMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=MAX_LIMIT, description="longest answer in tokens")
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_LIMIT, description="the newer name of max_tokens")
    seed: int | None = Field(None, ge=-(2**63), le=MAX_LIMIT)
    stop: StopField | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="how many answers")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Annotated[Any, only("auto", "none", because="a call cannot be forced")] = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    user: str | None = Field(None, min_length=1, max_length=256)
    metadata: dict[Label, Value] | None = Field(None, max_length=16)

    response_format: Annotated[Any, only({"type": "text"}, because="decoding is not constrained by a grammar")] = None
    frequency_penalty: Annotated[Any, only(0, because="decoding has no penalties")] = None
    presence_penalty: Annotated[Any, only(0, because="decoding has no penalties")] = None
    logit_bias: Annotated[Any, only({}, because="decoding has no per-token bias")] = None
    parallel_tool_calls: Annotated[Any, only(True, because="the number of calls is the model's choice")] = None
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
        self._results_have_calls()
        return self

    def _results_have_calls(self) -> None:
        asked: list[str] = []
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                asked += [call.id for call in message.tool_calls or ()]
            if isinstance(message, ToolMessage) and message.tool_call_id not in asked:
                raise wrong(f"messages[{i}].tool_call_id", "no earlier assistant message made this call; "
                            + unknown(message.tool_call_id, asked, noun="call"), "invalid_value")
