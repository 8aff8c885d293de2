"""Runs one tool call: arguments checked against the tool's schema, time and length bounded, every failure a result to read.

In: a ToolCall and the tools there are. Out: a ToolResult. It never raises but when it is cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import re2
from jsonschema import Draft202012Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from referencing import Registry

from demeanor.core import registry
from demeanor.core.errors import unknown
from demeanor.core.types import (
    Citation,
    Done,
    Event,
    Message,
    Passage,
    Prompted,
    Respond,
    RunnableTool,
    Text,
    ToolCall,
    ToolCalled,
    ToolResult,
    Trust,
    Turn,
    Usage,
)
from demeanor.layers import Kit, timed

MAX_REFS = 10_000  # references that one check of arguments follows
_QUIET = re2.Options()
_QUIET.log_errors = False


async def called(
    call: ToolCall, tools: Mapping[str, RunnableTool], timeout_s: float, max_chars: int
) -> ToolResult:
    """Run a call. What a tool says of its arguments (ValueError, ArithmeticError) is told, other failures by their type only."""
    tool = tools.get(call.name)
    if tool is None:
        return failed(call, unknown(call.name, tools, noun="tool"))
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        return failed(call, f"arguments are not JSON: {error}")
    if wrong := mistakes(arguments, tool.spec.parameters):
        return failed(call, shortened("; ".join(wrong), max_chars))
    try:
        text = await asyncio.wait_for(tool.run(arguments), timeout_s)
    except TimeoutError:
        return failed(call, f"no answer within {timeout_s:g} s")
    except (ValueError, ArithmeticError) as error:
        return failed(call, shortened(str(error), max_chars))
    except Exception as error:
        return failed(call, type(error).__name__)
    return ToolResult(call.id, call.name, shortened(text, max_chars))


def failed(call: ToolCall, why: str) -> ToolResult:
    """A result that says what went wrong."""
    return ToolResult(call.id, call.name, f"error: {why}", error=True)


def shortened(text: str, max_chars: int) -> str:
    """The text, or as much of it as allowed and how much is missing."""
    return text if len(text) <= max_chars else f"{text[:max_chars]} [{len(text) - max_chars} more characters]"


def mistakes(value: Any, schema: Mapping[str, Any], where: str = "arguments") -> list[str]:
    """Everything wrong with a value by a JSON Schema (draft 2020-12), or that the schema cannot be used; `where` names the value.

    Nothing is fetched, and a pattern is matched by RE2, in time linear in the text.
    """
    whole = {keyword: wanted for keyword, wanted in schema.items() if keyword != "$schema"}
    refs = itertools.count(1)

    def ref(checker: Any, target: str, value: Any, schema: Any) -> Iterator[ValidationError]:
        if next(refs) > MAX_REFS:
            raise RecursionError(f"more than {MAX_REFS} references")
        yield from Draft202012Validator.VALIDATORS["$ref"](checker, target, value, schema)

    try:
        Draft202012Validator.check_schema(whole, format_checker=FormatChecker(()))  # RE2 judges patterns
        changed = {"$ref": ref, "$dynamicRef": ref, "pattern": _pattern}
        checker = extend(Draft202012Validator, changed)  # type: ignore[no-untyped-call]
        errors = checker(whole, registry=Registry()).iter_errors(value)
        return list(dict.fromkeys(sentence for error in errors for sentence in _sentences(error, where)))
    except SchemaError as error:
        why = f"{error.json_path}: {error.message}"
    except (
        Exception
    ) as error:  # of the schema: a reference that leads nowhere or to itself, a pattern that is none
        why = f"{type(error).__name__}: {error}"
    return [f"{where} cannot be checked, the tool's schema cannot be used: {shortened(why, 200)}"]


def _pattern(checker: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not re2.search(pattern, value, _QUIET):
        yield ValidationError("no match")


def _sentences(error: ValidationError, where: str) -> list[str]:
    """Where, what was wanted and what was got."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    place = where + "".join(steps)
    wanted: Any = error.validator_value
    value: Any = error.instance
    schema: Any = error.schema
    if error.validator == "required":
        return [f"{place}.{name} is missing" for name in wanted if name not in value]
    if error.validator == "additionalProperties" and "patternProperties" not in schema:
        known = schema.get("properties", {})
        names = ", ".join(known) or "none"
        return [f"{place}.{name} is unknown; known: {names}" for name in value if name not in known]
    if error.validator in ("minLength", "maxLength"):
        place, value = f"{place} in characters", len(value)
    match error.validator:
        case "type":
            should = wanted if isinstance(wanted, str) else " or ".join(wanted)
        case "enum":
            should = f"one of {', '.join(map(_shown, wanted))}"
        case "minimum" | "minLength":
            should = f"at least {wanted}"
        case "maximum" | "maxLength":
            should = f"at most {wanted}"
        case None:  # the schema is `false`, and the library does not say at which member
            return [f"{place} holds {_shown(value)} where the schema allows nothing"]
        case keyword:
            should = f"valid by {_shown({keyword: wanted})}"
    return [f"{place} should be {should}, got {_shown(value)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Round:
    """What one round said and called, how many tokens it wrote, and how it ended."""

    def __init__(self, start: int = 0, told: frozenset[Event] = frozenset()) -> None:
        """`start`: characters of the answer so far; `told`: passages and prompts that earlier rounds have shown."""
        self.said = ""
        self.calls: list[ToolCall] = []
        self.written = 0
        self.done = Done("cancelled", by="tools")
        self._start, self._told = start, set(told)

    async def events(self, inner: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """Everything but Done, as it comes."""
        async for event in inner:
            if isinstance(event, Done):
                self.done = event
                continue
            if isinstance(event, Passage | Prompted):
                if event in self._told:
                    continue
                self._told.add(event)
            elif isinstance(event, Text):
                self.said += event.text
            elif isinstance(event, ToolCalled):
                self.calls.append(event.call)
            elif isinstance(event, Usage):
                self.written += event.completion_tokens
            elif isinstance(event, Citation):
                event = replace(event, start=event.start + self._start, end=event.end + self._start)
            yield event

    @property
    def broken_off(self) -> bool:
        """Whether the round was refused or cancelled, so that nothing it asked for is run."""
        return self.done.finish_reason in ("cancelled", "content_filter")

    def next(self, pause: str) -> Round:
        """The round that follows after this one's text and a pause."""
        return Round(self._start + len(self.said) + len(pause), frozenset(self._told))


BEHAVIOUR = True
TOOLS = "demeanor.tools"


class Spec(registry.Spec):
    """Which tools, and how far they may go."""

    allow: tuple[str, ...] = Field(min_length=1, description="names of tools")
    max_rounds: int = Field(
        3, ge=1, le=32, description="how often results go back to the model; later calls are not run"
    )
    timeout_s: float = Field(10.0, gt=0, description="seconds one call may take")
    max_result_chars: int = Field(2000, ge=1, description="characters of a result that the model reads")

    @field_validator("allow")
    @classmethod
    def _exist(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        for name in allow:
            if name not in registry.known(TOOLS):
                why = unknown(name, registry.known(TOOLS), noun="tool")
                raise PydanticCustomError("tool", "names of tools; {why}", {"why": why})
        return allow


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Offer the allowed tools and run them; a tool of the caller with the same name takes the place of ours."""
    allowed = {name: kit.tools[name] for name in spec.allow}

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        callers = {tool.name for tool in turn.tools}
        ours = {} if turn.tool_choice == "none" else {n: t for n, t in allowed.items() if n not in callers}
        turn = replace(turn, tools=(*(t.spec for t in ours.values()), *turn.tools))
        this = Round()
        for left in reversed(range(spec.max_rounds + 1)):
            async for event in this.events(inner(turn)):
                yield event
            mine = [call for call in this.calls if call.name not in callers]
            if this.broken_off or not mine:
                break
            results = []
            for call in mine:
                result = (
                    await called(call, ours, spec.timeout_s, spec.max_result_chars)
                    if left
                    else failed(call, "too many calls")
                )
                yield result
                results.append(result)
            if len(mine) < len(this.calls):
                break  # the caller has calls to run before the model can go on
            if not left or this.written >= turn.decoding.max_tokens:
                this.done = Done("length", by="tools")
                break
            pause = "\n" if this.said.strip() else ""
            if pause:
                yield Text(pause, by="tools")
            turn, this = again(turn, this, results), this.next(pause)
        yield this.done

    return timed("tools", body, inner, kit.clock)


def again(turn: Turn, last: Round, results: Sequence[ToolResult]) -> Turn:
    """The turn with what the model said and what its tools answered; all rounds together keep to max_tokens."""
    said = Message("assistant", last.said, tool_calls=tuple(last.calls))
    heard = (
        Message("tool", r.content, tool_call_id=r.call_id, name=r.name, trust=Trust.NONE) for r in results
    )
    decoding = replace(turn.decoding, max_tokens=turn.decoding.max_tokens - last.written)
    return replace(
        turn,
        messages=(*turn.messages, said, *heard),
        decoding=decoding,
        tool_choice=again_choice(turn.tool_choice),
    )


def again_choice(choice: str) -> str:
    """A demanded call has been made; from then on the model is free to answer."""
    return choice if choice == "none" else "auto"
