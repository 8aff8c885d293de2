"""The tools layer: offers tools to the model, runs its calls, and returns the results to it for another
round.

In: a turn. Out: the events of all rounds. Arguments are checked against the tool's schema, tools run in
threads of their own, time and length are bounded, and every failure is a result that the model reads; only
cancellation raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import itertools
import json
import threading
from collections import Counter, defaultdict, deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import re2
from jsonschema import Draft202012Validator, FormatChecker, SchemaError, ValidationError
from jsonschema.validators import extend
from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from referencing import Registry

from demeanor.core import registry
from demeanor.core.errors import DemeanorError, Problem, unknown
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
    ToolSpec,
    Trust,
    Turn,
    Unsupported,
    Usage,
)
from demeanor.layers import Kit, timed
from demeanor.layers._functions import load_functions, names_of

TOOLS = "demeanor.tools"  # the folder of tools
MAX_REFS = 10_000  # references that one check of arguments follows
_QUIET = re2.Options()
_QUIET.log_errors = False


@dataclass(frozen=True, slots=True)
class LoadedTool:
    """A tool that can be run; its arguments were checked against `spec.parameters`."""

    spec: ToolSpec
    run: Callable[[Mapping[str, Any]], Any]


def load(names: Iterable[str]) -> Mapping[str, LoadedTool]:
    """Return the named tools; raises DemeanorError with the nearest and all known names."""
    modules = {name: registry.entry(TOOLS, name) for name in names}
    return {name: LoadedTool(module.SPEC, module.run) for name, module in modules.items()}


def with_renamed_arguments(tool: RunnableTool, names: Mapping[str, str]) -> LoadedTool:
    """Return the tool with renamed arguments (`names`: its own name -> the new one)."""
    own_names = {other: own for own, other in names.items()}
    parameters = dict(tool.spec.parameters)
    parameters["properties"] = {names.get(k, k): v for k, v in parameters.get("properties", {}).items()}
    parameters["required"] = [names.get(k, k) for k in parameters.get("required", ())]

    def run(arguments: Mapping[str, Any]) -> Any:
        return tool.run({own_names.get(k, k): v for k, v in arguments.items()})

    return LoadedTool(ToolSpec(tool.spec.name, tool.spec.description, parameters), run)


class ToolThreads:
    """Runs tools in daemon threads: at most `most` calls of one tool at once, so that a tool that hangs takes
    no thread of another one; further calls wait."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._waiting: defaultdict[str, deque[tuple[Callable[[], ToolResult], Future[ToolResult]]]]
        self._waiting = defaultdict(deque)
        self._running: Counter[str] = Counter()
        self._abandoned: set[Future[ToolResult]] = set()

    @property
    def abandoned(self) -> int:
        """The number of calls that nobody waits for any more and that cannot be stopped."""
        return len(self._abandoned)

    async def run(self, name: str, job: Callable[[], ToolResult], timeout_s: float) -> ToolResult:
        """Return what the job returns. Raises TimeoutError after `timeout_s`, the wait for a thread included."""
        done: Future[ToolResult] = Future()
        with self._lock:
            self._waiting[name].append((partial(contextvars.copy_context().run, job), done))
            if self._running[name] < self._most:
                threading.Thread(target=self._work, args=(name,), name=f"tool {name}", daemon=True).start()
                self._running[name] += 1
        try:
            return await asyncio.wait_for(asyncio.wrap_future(done), timeout_s)
        finally:
            if done.running():
                self._abandoned.add(done)
                done.add_done_callback(self._abandoned.discard)

    def _work(self, name: str) -> None:
        """Run the waiting calls of a tool until there are none."""
        while True:
            with self._lock:
                if not self._waiting[name]:
                    self._running[name] -= 1
                    return
                job, done = self._waiting[name].popleft()
            if done.set_running_or_notify_cancel():
                done.set_result(job())


THREADS = ToolThreads(16)


async def called(
    call: ToolCall, tools: Mapping[str, RunnableTool], timeout_s: float, max_chars: int
) -> ToolResult:
    """Run a call in a thread; its failure is a result too."""
    arguments, wrong = arguments_of(call, tools)
    if wrong:
        return failed(call, shortened(wrong, max_chars))
    tool = tools[call.name]
    try:
        return await THREADS.run(
            call.name, partial(_result, call, tool, arguments, timeout_s, max_chars), timeout_s
        )
    except TimeoutError:
        return failed(call, _late(timeout_s))
    except RuntimeError as error:  # the machine gives no further thread
        return failed(call, f"the tool could not be started: {error}")


def arguments_of(call: ToolCall, tools: Mapping[str, RunnableTool]) -> tuple[Any, str]:
    """Return a call's arguments, and what is wrong with the call if it cannot be run."""
    tool = tools.get(call.name)
    if tool is None:
        return None, unknown(call.name, tools, noun="tool")
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError) as error:
        return None, f"arguments are not JSON: {error}"
    arguments = given(arguments, tool.spec.parameters)
    return arguments, "; ".join(mistakes(arguments, tool.spec.parameters))


def given(arguments: Any, schema: Mapping[str, Any]) -> Any:
    """Return arguments without those that are null where they may be left out and null is no value: models write both."""
    if not isinstance(arguments, dict):
        return arguments
    properties, required = schema.get("properties", {}), schema.get("required", ())

    def left_out(name: str, value: Any) -> bool:
        if value is not None or name in required or not isinstance(properties, Mapping):
            return False
        return isinstance(properties.get(name), Mapping) and bool(mistakes(None, properties[name]))

    return {name: value for name, value in arguments.items() if not left_out(name, value)}


def _result(
    call: ToolCall, tool: RunnableTool, arguments: Mapping[str, Any], timeout_s: float, max_chars: int
) -> ToolResult:
    """Run a tool to its end, in this thread; a ValueError or ArithmeticError is shown to the model, any other
    failure (SystemExit too) by type only."""
    try:
        value = tool.run(arguments)
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value, timeout_s))
        return ToolResult(call.id, call.name, result_text(value, max_chars))
    except _LateError as error:
        return failed(call, str(error))
    except BaseException as error:
        why = type(error).__name__
        if isinstance(error, ValueError | ArithmeticError):
            with contextlib.suppress(BaseException):
                why = _unicode(shortened(str(error), max_chars))
        return failed(call, why)


class _LateError(Exception):
    """A tool has used up its time."""


async def _awaited(value: Awaitable[Any], timeout_s: float) -> Any:
    """Await a tool in the loop of its thread, where it is also cancelled in time.

    Raises _LateError then; a TimeoutError is the tool's own.
    """
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await value
    except TimeoutError:
        if limit.expired():
            raise _LateError(_late(timeout_s)) from None
        raise


def _late(timeout_s: float) -> str:
    return f"no answer within {timeout_s:g} s"


def result_text(value: Any, max_chars: int) -> str:
    """Return what the model reads of a tool's value.

    Text as it is, bytes as UTF-8, everything else as JSON (None: null), and what JSON cannot hold by its str().
    """
    if isinstance(value, bytes | bytearray):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        pieces, length = list[str](), 0
        try:
            for piece in json.JSONEncoder(ensure_ascii=False, default=_plain).iterencode(value):
                pieces.append(piece)
                length += len(piece)
                if length > max_chars:  # the rest of a huge value is not written
                    return _unicode("".join(pieces)[:max_chars]) + " [more characters]"
            value = "".join(pieces)
        except (TypeError, ValueError, RecursionError):  # a key that is no text, a circle
            value = str(value)
    return _unicode(shortened(value, max_chars))


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes | bytearray) else str(value)


def _unicode(text: str) -> str:
    """Return the text with U+FFFD in place of halves of surrogate pairs."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def failed(call: ToolCall, why: str) -> ToolResult:
    """Return a result that says what went wrong."""
    return ToolResult(call.id, call.name, f"error: {why}", error=True)


def shortened(text: str, max_chars: int) -> str:
    """Return the text, or the allowed part of it with the number of missing characters."""
    return text if len(text) <= max_chars else f"{text[:max_chars]} [{len(text) - max_chars} more characters]"


def mistakes(value: Any, schema: Mapping[str, Any], where: str = "arguments") -> list[str]:
    """List what is wrong with a value by a JSON Schema (draft 2020-12), or why the schema is unusable.

    `where` names the value. Nothing is fetched, and patterns are matched by RE2, in time linear in the text.
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
    except Exception as error:  # in the schema: a dangling or circular reference, an invalid pattern
        why = f"{type(error).__name__}: {error}"
    return [f"{where} cannot be checked, the tool's schema cannot be used: {shortened(why, 200)}"]


def _pattern(checker: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not re2.search(pattern, value, _QUIET):
        yield ValidationError("no match")


def _sentences(error: ValidationError, where: str) -> list[str]:
    """Return the place, what was wanted and what was got."""
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
        case None:  # the schema is `false`; the library does not name the member
            return [f"{place} holds {_shown(value)} where the schema allows nothing"]
        case keyword:
            should = f"valid by {_shown({keyword: wanted})}"
    return [f"{place} should be {should}, got {_shown(value)}"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


class Round:
    """The text, calls and tokens of one round, and how it ended."""

    def __init__(self, start: int = 0, shown: frozenset[Event] = frozenset()) -> None:
        """`start`: characters of the answer so far; `shown`: passages and prompts of earlier rounds."""
        self._texts: list[str] = []
        self.calls: list[ToolCall] = []
        self.num_tokens = 0
        self.done = Done("cancelled", by="tools")
        self._start, self._shown = start, set(shown)

    async def events(self, inner: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """Yield all events but Done, and those that earlier rounds have shown."""
        async for event in inner:
            if isinstance(event, Done):
                self.done = event
                continue
            if isinstance(event, Passage | Prompted):
                if event in self._shown:
                    continue
                self._shown.add(event)
            elif isinstance(event, Text):
                self._texts.append(event.text)
            elif isinstance(event, ToolCalled):
                self.calls.append(event.call)
            elif isinstance(event, Usage):
                self.num_tokens += event.completion_tokens
            elif isinstance(event, Citation | Unsupported):
                event = replace(event, start=event.start + self._start, end=event.end + self._start)
            yield event

    @property
    def text(self) -> str:
        """The text of the round so far."""
        return "".join(self._texts)

    @property
    def broken_off(self) -> bool:
        """True if the round was refused or cancelled, so that none of its calls is run."""
        return self.done.finish_reason in ("cancelled", "content_filter")

    def next(self, pause: str) -> Round:
        """Return the round after this one's text and a pause."""
        return Round(self._start + len(self.text) + len(pause), frozenset(self._shown))


BEHAVIOUR = True
MOST_WRONG = 2  # rounds with malformed calls, after which no tool is offered


class Spec(registry.Spec):
    """Which tools, and their limits."""

    allow: tuple[str, ...] = Field((), description="names of tools; empty: all functions of `module`")
    module: registry.File | None = Field(
        None, description="a Python file beside the stack file; its public functions are tools too"
    )
    max_rounds: int = Field(
        3, ge=1, le=32, description="how often results go back to the model; later calls are not run"
    )
    timeout_s: float = Field(10.0, gt=0, description="seconds one call may take")
    max_result_chars: int = Field(2000, ge=1, description="characters of a result that the model reads")

    @field_validator("allow")
    @classmethod
    def _exist(cls, allow: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(allow)) < len(allow):
            raise PydanticCustomError("tool", "names of tools, each once")
        return allow

    @model_validator(mode="after")
    def _offers(self) -> Spec:
        if self.module is None:
            if not self.allow:
                raise PydanticCustomError("tool", "names of tools in `allow`, or a `module` with functions")
            _known(self.allow, registry.known(TOOLS))
        return self


def _known(allow: Iterable[str], names: Collection[str]) -> None:
    for name in allow:
        if name not in names:
            raise PydanticCustomError(
                "tool", "names of tools; {why}", {"why": unknown(name, names, noun="tool")}
            )


def check(spec: Spec, root: Path) -> list[Problem]:
    """What is wrong with the file of functions; it is read and not run."""
    if spec.module is None:
        return []
    where = f"{root / spec.module}"
    try:
        names = names_of(root / spec.module)
    except DemeanorError as error:
        return [Problem(where, str(error).removeprefix(f"{where}:"))]
    if not names:
        return [Problem(where, "it has no public function; a tool is one with annotations and a docstring")]
    try:
        _known(spec.allow, {*names, *registry.known(TOOLS)})
    except PydanticCustomError as error:
        return [Problem(where, error.message())]
    return []


def offered(spec: Spec, kit: Kit) -> dict[str, RunnableTool]:
    """Return the tools that a layer offers: the allowed ones, of its module first; runs the module."""
    own: Mapping[str, RunnableTool] = {} if spec.module is None else load_functions(kit.root / spec.module)
    return {name: own[name] if name in own else kit.tools[name] for name in spec.allow or own}


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Offer the allowed tools and run them; a caller's tool replaces ours of the same name.

    A call that the caller demands is of the caller's tools, so ours are not offered then.
    """
    allowed = offered(spec, kit)

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        callers = {tool.name for tool in turn.tools}
        demanded = bool(callers) and (turn.tool_choice == "required" or turn.tool_choice in callers)
        offers = turn.tool_choice != "none" and not demanded
        ours = {n: t for n, t in allowed.items() if n not in callers} if offers else {}
        turn = replace(turn, tools=(*(t.spec for t in ours.values()), *turn.tools))
        this, wrong = Round(), 0  # rounds with calls that could not be run
        for left in reversed(range(spec.max_rounds + 1)):
            async for event in this.events(inner(turn)):
                yield event
            our_calls = [call for call in this.calls if call.name not in callers]
            if this.broken_off or not our_calls:
                break
            results = []
            async for result in _all(our_calls, ours, spec, run=left > 0):
                yield result
                results.append(result)
            wrong += any(arguments_of(call, ours)[1] for call in our_calls)
            if len(our_calls) < len(this.calls):
                break  # the caller has to run its own calls first
            if not left or this.num_tokens >= turn.decoding.max_tokens:
                this.done = Done("length", by="tools")
                break
            pause = "\n" if this.text.strip() else ""
            if pause:
                yield Text(pause, by="tools")
            turn, this = next_turn(turn, this, results), this.next(pause)
            if wrong >= MOST_WRONG:  # the model cannot write this call: it has to answer without
                turn = replace(turn, tools=(), tool_choice="none")
        yield this.done

    return timed("tools", body, inner, kit.clock)


async def _all(
    calls: Sequence[ToolCall], tools: Mapping[str, RunnableTool], spec: Spec, *, run: bool
) -> AsyncIterator[ToolResult]:
    """Run calls side by side and yield their results in the order of the calls."""
    if not run:
        for call in calls:
            yield failed(call, "too many calls")
        return
    jobs = [asyncio.create_task(called(call, tools, spec.timeout_s, spec.max_result_chars)) for call in calls]
    try:
        for job in jobs:
            yield await job
    finally:
        for job in jobs:
            job.cancel()


def next_turn(turn: Turn, last: Round, results: Sequence[ToolResult]) -> Turn:
    """Return the turn with the model's text and calls and their results; all rounds share max_tokens.

    A demanded call has been made by then, so the model is free to answer.
    """
    answer = Message("assistant", last.text, tool_calls=tuple(last.calls))
    read = (
        Message("tool", r.content, tool_call_id=r.call_id, name=r.name, trust=Trust.NONE) for r in results
    )
    return replace(
        turn,
        messages=(*turn.messages, answer, *read),
        decoding=replace(turn.decoding, max_tokens=turn.decoding.max_tokens - last.num_tokens),
        tool_choice="none" if turn.tool_choice == "none" else "auto",
    )
