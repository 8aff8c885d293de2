"""The tools layer: offers tools to the model, runs its calls, and returns the results to it for another
round.

In: a turn. Out: the events of all rounds. Arguments are checked against the tool's schema, tools run in
threads of their own, time and length are bounded, and every failure is a result that the model reads; only
cancellation raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from demeanor.core import registry
from demeanor.core.errors import DemeanorError, Problem, unknown
from demeanor.core.types import Done, Event, Respond, RunnableTool, Text, ToolCall, ToolResult, Turn
from demeanor.layers import Kit, timed
from demeanor.layers.tools.calls import (
    THREADS,
    TOOLS,
    LoadedTool,
    ToolThreads,
    arguments_of,
    called,
    failed,
    load,
    with_renamed_arguments,
)
from demeanor.layers.tools.functions import load_functions, names_of
from demeanor.layers.tools.rounds import Round, next_turn

__all__ = ["THREADS", "LoadedTool", "ToolThreads", "load", "with_renamed_arguments"]

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
