"""What the bodies of all requests have in common: strict objects, fields that are refused by name, and fields of several addresses.

A field marked `never(...)` or `only(...)` is one that nothing here can honour: it is accepted when null or at the listed no-op
values, and refused by name otherwise. null always means "not set".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from demeanor.core.errors import unknown

MAX_STOPS, MAX_CHOICES, MAX_LOGPROBS = 4, 8, 20
MAX_LIMIT = 2**63 - 1


def wrong(field: str, message: str, code: str) -> PydanticCustomError:
    """A validation error about `field` of the object being checked."""
    return PydanticCustomError("api", "{message}", {"message": message, "field": field, "code": code})


@dataclass(frozen=True, slots=True)
class Only:
    """A field's marker: which values (and null) do nothing and are accepted, and why no other is; its JSON schema says so too."""

    accepted: tuple[Any, ...]
    because: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"enum": [*self.accepted, None], "description": f"not supported: {self.because}"}

    def check(self, value: Any) -> Any:
        """The value. Raises PydanticCustomError if it would do something."""
        if value is None or any(
            value == a and isinstance(value, bool) == isinstance(a, bool) for a in self.accepted
        ):
            return value
        values = (
            f"accepted: {', '.join(json.dumps(a) for a in self.accepted)}"
            if self.accepted
            else "leave it out"
        )
        code = "unsupported_value" if self.accepted else "unsupported_parameter"
        raise PydanticCustomError(
            "api", "{message}", {"message": f"not supported: {self.because}; {values}", "code": code}
        )


def only(*accepted: Any, because: str) -> Only:
    """A field of which only these no-op values (and null) are accepted, with the reason for refusing others."""
    return Only(accepted, because)


def never(because: str) -> Only:
    """A field that is refused by name whatever its value."""
    return Only((), because)


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
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for name in value if isinstance(value, dict) else ():
            if name not in known:
                raise wrong(name, unknown(name, known, noun="field"), "unknown_parameter")
        return value


Name: TypeAlias = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$")]
FunctionName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=64)]
StopField: TypeAlias = Annotated[
    Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
]
Label: TypeAlias = Annotated[str, Field(max_length=64)]
Value: TypeAlias = Annotated[str, Field(max_length=512)]


class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False, because="chunks are not padded")] = None


class TextPart(Body):
    """A piece of a message's content, or of a text."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Annotated[Any, never("there is no prompt cache to steer")] = None
