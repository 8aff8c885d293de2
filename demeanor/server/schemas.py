"""The bases of all request and response models: strict bodies, fields that are refused by name, and errors that name a field's path.

`@refusing(name=never(...))` adds a field that nothing here can honour: it is accepted when null or at the no-op values of `only(...)`,
and refused by name otherwise. null always means "not set".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from demeanor.core.errors import RequestError, unknown

MAX_STOPS, MAX_CHOICES, MAX_LOGPROBS = 4, 8, 20
MAX_LIMIT = 2**63 - 1
MAX_DEPTH = 100
"""How deep lists and objects of a body may be nested."""
LONG_NUMBER = re.compile(rb"[0-9]{19}")
MAX_LISTED = 5
"""Mistakes of one body that its error message lists."""
B = TypeVar("B", bound="Body")


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
        if self.accepted:
            advice, code = f"accepted: {', '.join(map(json.dumps, self.accepted))}", "unsupported_value"
        else:
            advice, code = "leave it out", "unsupported_parameter"
        message = f"not supported: {self.because}; {advice}"
        raise PydanticCustomError("api", "{message}", {"message": message, "code": code})


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


def refusing(**fields: Only) -> Callable[[type[B]], type[B]]:
    """Add fields that nothing here can honour to a body; they are checked after its own fields."""

    def add(model: type[B]) -> type[B]:
        refused: dict[str, Any] = {name: (Annotated[Any, marker], None) for name, marker in fields.items()}
        return create_model(
            model.__name__, __base__=model, __doc__=model.__doc__, __module__=model.__module__, **refused
        )

    return add


Name: TypeAlias = Annotated[str, Field(pattern=r"^[^\s<|\\/>]{1,64}$")]
FunctionName: TypeAlias = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
Stop: TypeAlias = Annotated[str, Field(min_length=1, max_length=64)]
StopField: TypeAlias = Annotated[
    Annotated[Stop, Tag("<text>")] | Annotated[list[Stop], Field(max_length=MAX_STOPS), Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, list) else "<text>"),
]
Label: TypeAlias = Annotated[str, Field(max_length=64)]
Value: TypeAlias = Annotated[str, Field(max_length=512)]


@refusing(include_obfuscation=only(False, because="chunks are not padded"))
class StreamOptions(Body):
    """Options of a streamed response."""

    include_usage: bool | None = None


@refusing(prompt_cache_breakpoint=never("there is no prompt cache to steer"))
class TextPart(Body):
    """A piece of a message's content, or of a text."""

    type: Literal["text"]
    text: str


class ResponseObject(BaseModel):
    """Base of every object in a response."""

    def encode(self) -> bytes:
        """This object as JSON, fields that were never set left out."""
        return self.model_dump_json(exclude_unset=True).encode()


class ErrorDetail(ResponseObject):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(ResponseObject):
    """Every error there is."""

    error: ErrorDetail


def parse_body(content: bytes, model: type[B]) -> B:
    """Check the bytes of a request body. Raises RequestError (400) that lists the mistakes; `param` is the path of the first."""
    try:
        value = orjson.loads(content)
        if LONG_NUMBER.search(content):  # orjson rounds integers of more than 64 bits
            value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"The body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise RequestError("The body should be a JSON object.", code="invalid_type")
    if content.count(b"[") + content.count(b"{") > MAX_DEPTH:
        for name, field in value.items():
            if _is_deeper(field, MAX_DEPTH - 1):
                raise RequestError(
                    f"{name}: nested more than {MAX_DEPTH} levels deep.", param=name, code="invalid_value"
                )
    return validated(value, model)


def _is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and objects are nested in each other more than `depth` times."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return False
    return True


def validated(value: dict[str, Any], model: type[B]) -> B:
    """Check the fields of a body or a query. Raises RequestError as `parse_body` does."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _bad_request(error.errors(include_url=False)) from None


def _bad_request(mistakes: list[ErrorDetails]) -> RequestError:
    lines = [f"{_path(m)}: {_sentence(m)}" for m in mistakes[:MAX_LISTED]]
    if len(mistakes) > MAX_LISTED:
        lines.append(f"and {len(mistakes) - MAX_LISTED} more mistakes")
    return RequestError("; ".join(lines), param=_path(mistakes[0]), code=_code(mistakes[0]))


def _code(mistake: ErrorDetails) -> str:
    if "code" in mistake.get("ctx", {}):
        return str(mistake["ctx"]["code"])
    if mistake["type"] == "missing":
        return "missing_required_parameter"
    return "invalid_type" if mistake["type"].endswith(("_type", "_parsing")) else "invalid_value"


def _path(mistake: ErrorDetails) -> str:
    """`messages[0].content`: tags of unions (in angle brackets) are ours and not part of the body."""
    parts = [p for p in mistake["loc"] if not (isinstance(p, str) and p.startswith("<"))]
    if "field" in mistake.get("ctx", {}):
        parts.append(mistake["ctx"]["field"])
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")


def _sentence(mistake: ErrorDetails) -> str:
    text = mistake["msg"][:1].lower() + mistake["msg"][1:]
    return text if mistake["type"] in ("api", "missing") else f"{text}, got {_shown(mistake['input'])}"


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or a deep nest
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
