"""The body of /v1/chat/completions: every field that OpenAI documents, honoured or refused by name, vLLM's top_k and min_p; and its Turns.

In: a ChatRequest, checked as pydantic builds it, and the stack's own decoding. Out: one Turn per choice. null always means "not set".
Whether a JSON schema can be decoded is for the engine to say.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from demeanor.core.errors import unknown
from demeanor.core.types import Decoding, Message, Messages, OutputFormat, ToolCall, ToolSpec, Turn
from demeanor.server.approvals import ApprovalField
from demeanor.server.assistant import ModelCard
from demeanor.server.schemas import (
    MAX_CHOICES,
    MAX_LIMIT,
    MAX_LOGPROBS,
    Body,
    FunctionName,
    Label,
    Name,
    StopField,
    StreamOptions,
    TextPart,
    Value,
    never,
    one_of,
    only,
    refusing,
    wrong,
)

MAX_MESSAGES, MAX_TOOLS, MAX_BIASES = 1024, 128, 1024

Part: TypeAlias = Annotated[TextPart, one_of("type", ["text"])]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(min_length=1), Tag("<parts>")],
    Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"),
]


class RefusedPart(Body):
    """An earlier refusal, sent back."""

    type: Literal["refusal"]
    refusal: str


AnswerPart: TypeAlias = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[RefusedPart, Tag("<refusal>")],
    Discriminator(lambda value: f"<{value.get('type')}>" if isinstance(value, dict) else f"<{value.type}>"),
    one_of("type", ["text", "refusal"]),
]
AnswerContent: TypeAlias = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[AnswerPart], Field(min_length=1), Tag("<parts>")],
    Discriminator(lambda value: "<parts>" if isinstance(value, list) else "<text>"),
]


def content_text(content: Content | AnswerContent | None) -> str:
    """A content as one text: parts are joined by line breaks."""
    if isinstance(content, str):
        return content
    return "\n".join(part.refusal if isinstance(part, RefusedPart) else part.text for part in content or ())


class Function(Body):
    """The function of a tool call in the history; `arguments` is passed on as it is, valid JSON or not."""

    name: FunctionName
    arguments: str
    parsed_arguments: Any = Field(None, description="as SDKs add it; not read")


class Call(Body):
    """A tool call that the assistant made earlier."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    type: Literal["function"] = "function"
    function: Function
    index: int | None = Field(None, description="of a streamed call, accepted so that it can be sent back")


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


@refusing(
    audio=never("text only"),
    function_call=never("deprecated by OpenAI; use tool_calls"),
)
class AssistantMessage(Body):
    """What the assistant said before; a message of an earlier response can be sent back as it came."""

    role: Literal["assistant"]
    content: AnswerContent | None = None
    name: Name | None = None
    refusal: str | None = None
    parsed: Any = Field(None, description="as SDKs add it to a message; not read")
    tool_calls: list[Call] | None = None
    annotations: list[dict[str, Any]] | None = Field(
        None,
        description="accepted so that a response's message can be sent "
        "back; citations of an old answer are not shown to the model",
    )

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
    tool_call_id: Annotated[str, Field(min_length=1, max_length=128)]
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


class OfferedTool(Body):
    """A tool offered with the request."""

    type: Literal["function"]
    function: FunctionTool


class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(Body):
    """A JSON schema by name; decoding is held to it whether `strict` or not."""

    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class SchemaFormat(Body):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat: TypeAlias = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[ObjectFormat, Tag("<json_object>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")],
    Discriminator(lambda value: f"<{value.get('type')}>" if isinstance(value, dict) else f"<{value.type}>"),
    one_of("type", ["text", "json_object", "json_schema"]),
]


class Named(Body):
    """A function by name."""

    name: FunctionName


class NamedChoice(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: Named


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedChoice, Tag("<function>")],
    Discriminator(lambda value: "<function>" if isinstance(value, dict | NamedChoice) else "<word>"),
]


def _token_ids(biases: dict[str, float]) -> dict[str, float]:
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            message = f"got the key '{key}', wanted token ids as text, such as \"42\""
            raise PydanticCustomError("api", "{message}", {"message": message, "code": "invalid_value"})
    return biases


Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
LogitBias: TypeAlias = Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), AfterValidator(_token_ids)]


class SamplingFields(Body):
    """The fields of a request that decide how tokens are drawn."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=MAX_LIMIT)
    stop: StopField | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="how many answers")
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = Field(None, description="token id as text to what is added to its logit")
    top_k: int | None = Field(
        None, ge=-1, le=MAX_LIMIT, description="ours and vLLM's: draw from so many tokens; 0, -1: from all"
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="ours and vLLM's: least probability relative to the likeliest token"
    )


@refusing(
    modalities=only(["text"], because="text only"),
    service_tier=only("auto", "default", because="there is one tier"),
    audio=never("text only"),
    functions=never("deprecated by OpenAI; use tools"),
    function_call=never("deprecated by OpenAI; use tool_choice"),
    moderation=never("rules belong in the stack's policy layer"),
    prediction=never("decoding does not take a draft"),
    prompt_cache_key=never("there is no prompt cache to steer"),
    prompt_cache_options=never("there is no prompt cache to steer"),
    prompt_cache_retention=never("there is no prompt cache to steer"),
    reasoning_effort=never("the model has no separate reasoning"),
    safety_identifier=never("use user"),
    store=never("whether a turn is stored is decided by the stack's record layer"),
    verbosity=never("answers have no verbosity control"),
    web_search_options=never("nothing is looked up outside the stack"),
)
class ChatRequest(SamplingFields):
    """The body of POST /v1/chat/completions."""

    model: str = Field(description="a variant's id, see GET /v1/models")
    messages: list[RequestMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MAX_LIMIT, description="longest answer in tokens")
    max_completion_tokens: int | None = Field(
        None, ge=1, le=MAX_LIMIT, description="the newer name of max_tokens"
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[OfferedTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = Field(
        None, description="whether a tool may, must not or must be called, or which"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call is returned")
    response_format: ResponseFormat | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    user: str | None = Field(None, min_length=1, max_length=256)
    metadata: dict[Label, Value] | None = Field(None, max_length=16)
    approval: ApprovalField | None = Field(
        None, description="ours: decisions on tool calls that waited for a person"
    )

    @property
    def parallel(self) -> bool:
        return self.parallel_tool_calls is not False

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def chosen_tool(self) -> str:
        """tool_choice as a Turn has it: auto, none, required, or a function's name."""
        if isinstance(self.tool_choice, NamedChoice):
            return self.tool_choice.function.name
        return self.tool_choice or "auto"

    @property
    def output_format(self) -> OutputFormat | None:
        """response_format as a Turn has it; None where any text will do."""
        if isinstance(self.response_format, SchemaFormat):
            said = self.response_format.json_schema
            text = json.dumps(said.schema_)
            return OutputFormat("json_schema", text, said.name, said.description, said.strict)
        return OutputFormat("json_object") if isinstance(self.response_format, ObjectFormat) else None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise wrong("top_logprobs", "needs logprobs: true", "invalid_value")
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "needs stream: true", "invalid_value")
        if self.max_tokens is not None and self.limit != self.max_tokens:
            raise wrong("max_tokens", "differs from max_completion_tokens; send one of them", "invalid_value")
        if self.approval is not None and (self.n or 1) > 1:
            raise wrong("n", "should be 1 with an approval, because a call is run once", "invalid_value")
        if self.user is not None and "user" in (self.metadata or {}):
            raise wrong("metadata.user", "already given as the field user", "invalid_value")
        names = [tool.function.name for tool in self.tools or ()]
        check_tool_names(names, self.tool_choice, self.chosen_tool, "function.name")
        self._results_have_calls()
        return self

    def _results_have_calls(self) -> None:
        call_ids: set[str] = set()
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                call_ids.update(call.id for call in message.tool_calls or ())
            if isinstance(message, ToolMessage) and message.tool_call_id not in call_ids:
                raise wrong(
                    f"messages[{i}].tool_call_id",
                    "no earlier assistant message made this call; "
                    + unknown(message.tool_call_id, call_ids, noun="call"),
                    "invalid_value",
                )


def check_tool_names(names: list[str], choice: object, chosen: str, path: str) -> None:
    """Raise if a tool is declared twice, or tool_choice needs one that is not declared; `path` leads from a tool to its name."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise wrong(f"tools[{i}].{path}", f"'{name}' is declared twice", "invalid_value")
    if choice == "required" and not names:
        raise wrong("tool_choice", "'required' needs tools", "invalid_value")
    if isinstance(choice, Body) and chosen not in names:
        raise wrong(f"tool_choice.{path}", unknown(chosen, names, noun="tool"), "invalid_value")


def chat_turns(
    request: ChatRequest, card: ModelCard, defaults: Decoding, *, user: str | None, id: str
) -> list[Turn]:
    """One Turn per choice; the first keeps the request's seed, the others derive theirs from it.

    `user` is the owner of the API key; without keys the request's own `user` names the user.
    """
    metadata = dict(request.metadata or {})
    if request.user is not None:
        metadata["user"] = request.user
    return [
        Turn(
            messages=chat_messages(request.messages),
            decoding=_decoding(request, defaults, choice),
            tools=tuple(tool_spec(tool.function) for tool in request.tools or ()),
            tool_choice=request.chosen_tool,
            id=id if choice == 0 else f"{id}-{choice}",
            user=user or request.user or "anonymous",
            variant=card.id,
            stack_key=card.stack_key,
            metadata=metadata,
        )
        for choice in range(request.n or 1)
    ]


def _decoding(request: ChatRequest, defaults: Decoding, choice: int) -> Decoding:
    return replace(
        sampling(request, defaults, choice),
        max_tokens=request.limit or defaults.max_tokens,
        form=request.output_format,
        top_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
    )


def sampling(request: SamplingFields, defaults: Decoding, choice: int) -> Decoding:
    """The request's sampling over the assistant's own; further choices derive their seed from the first one's."""
    seed = defaults.seed if request.seed is None else request.seed
    if seed is not None and choice > 0:
        seed = derived_seed(seed, choice)
    stop = defaults.stop
    if request.stop is not None:
        stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    top_k = defaults.top_k
    if request.top_k is not None:
        top_k = request.top_k if request.top_k > 0 else None
    return Decoding(
        temperature=_or(request.temperature, defaults.temperature),
        top_p=_or(request.top_p, defaults.top_p),
        max_tokens=defaults.max_tokens,
        seed=seed,
        stop=stop,
        top_k=top_k,
        min_p=_or(request.min_p, defaults.min_p),
        presence_penalty=_or(request.presence_penalty, defaults.presence_penalty),
        frequency_penalty=_or(request.frequency_penalty, defaults.frequency_penalty),
        logit_bias=tuple((int(token), bias) for token, bias in (request.logit_bias or {}).items()),
    )


def _or(given: float | None, default: float) -> float:
    return default if given is None else given


def derived_seed(seed: int, choice: int) -> int:
    """The seed (53 bits) of a further choice: a hash, so that neighbouring seeds share no draws."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{choice}".encode()).digest()[:8], "big") >> 11


def chat_messages(given: list[RequestMessage]) -> Messages:
    """The request's messages as ours, each with the authority of its role."""
    return tuple(_message(m) for m in given)


def _message(given: RequestMessage) -> Message:
    calls: tuple[ToolCall, ...] = ()
    text = content_text(given.content)
    if isinstance(given, AssistantMessage):
        calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in given.tool_calls or ())
        text = text or given.refusal or ""
    call_id = given.tool_call_id if isinstance(given, ToolMessage) else None
    return Message(given.role, text, tool_calls=calls, tool_call_id=call_id, name=given.name)


def tool_spec(tool: FunctionTool) -> ToolSpec:
    """A tool of a request as a Turn has it."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    return ToolSpec(tool.name, tool.description or "", parameters, tool.strict)
