"""Runs a call of a tool in a thread of its own: arguments are checked, time and length bounded, and every failure is a
result that the model reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import json
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from demeanor.core import registry
from demeanor.core.errors import unknown
from demeanor.core.json_schema import given, mistakes, shortened
from demeanor.core.types import RunnableTool, ToolCall, ToolResult, ToolSpec, ToolVerdict

TOOLS = "demeanor.tools"  # the folder of tools


@dataclass(frozen=True, slots=True)
class LoadedTool:
    """A tool that can be run; its arguments were checked against `spec.parameters`."""

    spec: ToolSpec
    run: Callable[[Mapping[str, Any]], Any]
    pure: bool = False
    """It changes nothing outside: it may be run for a copy of a request, whose answer no user sees."""


DRY_RUN: contextvars.ContextVar[bool] = contextvars.ContextVar("demeanor_dry_run", default=False)
"""Whether the answer is a copy of another (a shadow, a replay): only pure tools are run then."""
NOT_RUN = "not run: this answer is a copy, and the tool may have effects"


def load(names: Iterable[str]) -> Mapping[str, LoadedTool]:
    """Return the named tools; raises DemeanorError with the nearest and all known names."""
    modules = {name: registry.entry(TOOLS, name) for name in names}
    return {
        name: LoadedTool(module.SPEC, module.run, getattr(module, "PURE", False))
        for name, module in modules.items()
    }


def with_renamed_arguments(tool: RunnableTool, names: Mapping[str, str]) -> LoadedTool:
    """Return the tool with renamed arguments (`names`: its own name -> the new one)."""
    own_names = {other: own for own, other in names.items()}
    parameters = dict(tool.spec.parameters)
    parameters["properties"] = {names.get(k, k): v for k, v in parameters.get("properties", {}).items()}
    parameters["required"] = [names.get(k, k) for k in parameters.get("required", ())]

    def run(arguments: Mapping[str, Any]) -> Any:
        return tool.run({own_names.get(k, k): v for k, v in arguments.items()})

    return LoadedTool(
        ToolSpec(tool.spec.name, tool.spec.description, parameters), run, getattr(tool, "pure", False)
    )


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
    return (await outcome(call, tools, timeout_s, max_chars))[0]


async def outcome(
    call: ToolCall, tools: Mapping[str, RunnableTool], timeout_s: float, max_chars: int
) -> tuple[ToolResult, ToolVerdict]:
    """Run a call in a thread; return its result, and whether it was run, failed, ran out of time or was malformed."""
    arguments, wrong = arguments_of(call, tools)
    if wrong:
        return failed(call, shortened(wrong, max_chars)), "malformed"
    tool = tools[call.name]
    try:
        result = await THREADS.run(
            call.name, partial(_result, call, tool, arguments, timeout_s, max_chars), timeout_s
        )
    except TimeoutError:
        return failed(call, _late(timeout_s)), "timed_out"
    except RuntimeError as error:  # the machine gives no further thread
        return failed(call, f"the tool could not be started: {error}"), "failed"
    late = result.error and result.content == f"error: {_late(timeout_s)}"
    return result, "timed_out" if late else "failed" if result.error else "run"


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


def _result(
    call: ToolCall, tool: RunnableTool, arguments: Mapping[str, Any], timeout_s: float, max_chars: int
) -> ToolResult:
    """Run a tool to its end, in this thread; a ValueError or ArithmeticError is shown to the model, any other
    failure (SystemExit too) by type only."""
    if DRY_RUN.get() and not getattr(tool, "pure", False):
        return failed(call, NOT_RUN)
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
