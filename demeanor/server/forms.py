"""What a request may demand of an answer's form: a JSON schema, a call of a tool, a bias for tokens.

In: parsed JSON. Out: checked pydantic models, and `types.Form`. It compiles nothing: whether a schema can be written is the engine's
to say, as a 400 that says what.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from demeanor.core.types import OutputFormat
from demeanor.server.bodies import Body, FunctionName, one_of

MAX_BIASES = 1024


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


def form(wanted: ResponseFormat | None) -> OutputFormat | None:
    """The form of a response_format; None where any text will do."""
    if isinstance(wanted, SchemaFormat):
        return OutputFormat("json_schema", json.dumps(wanted.json_schema.schema_))
    return OutputFormat("json_object") if isinstance(wanted, ObjectFormat) else None


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


def choice_name(choice: ToolChoice | None) -> str:
    """A tool_choice as a Turn has it: auto, none, required, or a function's name."""
    return choice.function.name if isinstance(choice, NamedChoice) else choice or "auto"


def _token_ids(biases: dict[str, float]) -> dict[str, float]:
    for key in biases:
        if not (key.isascii() and key.isdigit() and len(key) <= 9):
            raise PydanticCustomError(
                "api",
                "{message}",
                {
                    "message": f"got the key '{key}', wanted token ids as text, such as \"42\"",
                    "code": "invalid_value",
                },
            )
    return biases


Bias: TypeAlias = Annotated[float, Field(ge=-100, le=100)]
LogitBias: TypeAlias = Annotated[dict[str, Bias], Field(max_length=MAX_BIASES), AfterValidator(_token_ids)]
