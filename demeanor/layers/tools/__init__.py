"""The tools layer: offers tools to the model, runs its calls, and returns the results to it for another
round.

In: a turn. Out: the events of all rounds, with every decision about a tool (`ToolDecision`). Arguments are checked against the tool's
schema, tools run in threads of their own, time and length are bounded, and every failure is a result that the model reads; only
cancellation raises. A call that a person has to allow is not run: the turn ends with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from demeanor.core import registry
from demeanor.core.errors import DemeanorError, Problem, unknown
from demeanor.core.types import (
    Done,
    Event,
    Respond,
    RunnableTool,
    Text,
    ToolDecision,
    ToolResult,
    ToolVerdict,
    Turn,
)
from demeanor.layers import Kit, timed
from demeanor.layers.tools.calls import (
    THREADS,
    TOOLS,
    LoadedTool,
    ToolThreads,
    load,
    with_renamed_arguments,
)
from demeanor.layers.tools.functions import load_functions, names_of
from demeanor.layers.tools.rounds import Round, next_message, next_turn, with_results
from demeanor.layers.tools.running import Caller, Offer, TurnLimits
from demeanor.mcp.declaration import McpServer
from demeanor.mcp.pins import model_names, read_lock

__all__ = ["THREADS", "LoadedTool", "ToolThreads", "load", "with_renamed_arguments"]

BEHAVIOUR = True
MOST_WRONG = 2  # rounds with malformed calls, after which no tool is offered
LOCK = "tools.lock.json"
FOUND = 5  # tools that a search loads
MAX_NAMED = 50  # tools that one event names


class Spec(registry.Spec):
    """Which tools, and their limits."""

    allow: tuple[str, ...] = Field((), description="names of tools; empty: all functions of `module`")
    module: registry.File | None = Field(
        None, description="a Python file beside the stack file; its public functions are tools too"
    )
    servers: tuple[McpServer, ...] | None = Field(
        None, min_length=1, description="MCP servers; their tools are offered once a person has approved them"
    )
    lock: registry.Source | None = Field(
        None, description=f"file of the approved tools of `servers`, beside the stack file; null: {LOCK}"
    )
    approve: tuple[str, ...] | None = Field(
        None,
        description="names of tools whose every call a person must allow; null: those that say so themselves",
    )
    search_above: int | None = Field(
        None, ge=1, description="with more tools than this the model searches for them; null: it is shown all"
    )
    search_results: int | None = Field(None, ge=1, le=50, description="tools that one search loads; null: 5")
    max_rounds: int = Field(
        3, ge=1, le=32, description="how often results go back to the model; later calls are not run"
    )
    max_calls: int | None = Field(None, ge=1, description="calls of one turn that are run; null: no limit")
    timeout_s: float = Field(10.0, gt=0, description="seconds one call may take")
    max_total_s: float | None = Field(
        None, gt=0, description="seconds that all calls of a turn may take; null: no limit"
    )
    max_result_chars: int = Field(2000, ge=1, description="characters of a result that the model reads")
    max_total_chars: int | None = Field(
        None, ge=1, description="characters of all results of a turn that the model reads; null: no limit"
    )

    @model_validator(mode="before")
    @classmethod
    def _names_the_lock(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("servers") and raw.get("lock") is None:
            return {**raw, "lock": LOCK}
        return raw

    @field_validator("allow", "approve")
    @classmethod
    def _exist(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) < len(names):
            raise PydanticCustomError("tool", "names of tools, each once")
        return names

    @model_validator(mode="after")
    def _offers(self) -> Spec:
        if self.module is None:
            if not self.allow and not self.servers:
                raise PydanticCustomError(
                    "tool", "names of tools in `allow`, or a `module` with functions, or MCP `servers`"
                )
            _known(self.allow, registry.known(TOOLS))
        names = [server.name for server in self.servers or ()]
        if len(set(names)) < len(names):
            raise PydanticCustomError("tool", "servers with different names")
        if self.lock is not None and not self.servers:
            raise PydanticCustomError("tool", "`lock` is read for `servers` only, and there are none")
        if self.search_results is not None and self.search_above is None:
            raise PydanticCustomError("tool", "`search_results` is read with `search_above` only")
        return self


def _known(allow: Iterable[str], names: Collection[str]) -> None:
    for name in allow:
        if name not in names:
            raise PydanticCustomError(
                "tool", "names of tools; {why}", {"why": unknown(name, names, noun="tool")}
            )


def check(spec: Spec, root: Path) -> list[Problem]:
    """What is wrong with the file of functions, the lock file and the names; nothing is run and no server asked."""
    where = f"{root / spec.module}" if spec.module else f"{root}: tools"
    names: list[str] = []
    if spec.module is not None:
        try:
            names = names_of(root / spec.module)
        except DemeanorError as error:
            return [Problem(where, str(error).removeprefix(f"{where}:"))]
        if not names:
            return [
                Problem(where, "it has no public function; a tool is one with annotations and a docstring")
            ]
    try:
        _known(spec.allow, {*names, *registry.known(TOOLS)})
        own = [*spec.allow] or names
        approved = read_lock(root / spec.lock) if spec.lock else {}
        served = {server.name for server in spec.servers or ()}
        approved = {name: tools for name, tools in approved.items() if name in served}
        known = {*own, *model_names(approved, own).values()}
        if spec.approve and (
            approved or not spec.servers
        ):  # without a lock file no tool of a server is offered
            _known(spec.approve, known)
    except PydanticCustomError as error:
        return [Problem(where, error.message())]
    except DemeanorError as error:
        return [Problem(f"{root / str(spec.lock)}", str(error).removeprefix(f"{root / str(spec.lock)}: "))]
    return [
        Problem(where, missing)
        for name in own
        if name not in names and (missing := getattr(registry.entry(TOOLS, name), "missing", str)())
    ]


def offered(spec: Spec, kit: Kit) -> dict[str, RunnableTool]:
    """Return the layer's own tools: the allowed ones, of its module first; runs the module."""
    own: Mapping[str, RunnableTool] = {} if spec.module is None else load_functions(kit.root / spec.module)
    return {name: own[name] if name in own else kit.tools[name] for name in spec.allow or own}


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Offer the allowed tools and run them; a caller's tool replaces ours of the same name.

    A call that the caller demands is of the caller's tools, so ours are not offered then.
    """
    own = offered(spec, kit)
    limits = TurnLimits(
        approve=spec.approve or (),
        search_above=spec.search_above,
        search_results=spec.search_results or FOUND,
        max_calls=spec.max_calls,
        timeout_s=spec.timeout_s,
        max_total_s=spec.max_total_s,
        max_result_chars=spec.max_result_chars,
        max_total_chars=spec.max_total_chars,
    )
    servers = kit.open_servers(spec, tuple(own)) if spec.servers and kit.open_servers else None

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        if turn.approvals is not None:
            turn = replace(turn, messages=turn.approvals.conversation(turn.messages))
        callers = {tool.name for tool in turn.tools}
        demanded = bool(callers) and (turn.tool_choice == "required" or turn.tool_choice in callers)
        allowed = {**own, **servers.tools()} if servers else own
        tools = {n: t for n, t in allowed.items() if n not in callers}
        offer = Offer(limits, tools, callers, turn.messages)
        caller = Caller(limits, kit.clock, offer)
        if turn.tool_choice != "none" and not demanded:
            for told in _told(offer, servers.withheld() if servers else {}):
                yield told
        else:
            offer.close()
        results = list[ToolResult]()
        async for step in caller.decided(turn):
            if isinstance(step, ToolResult):
                results.append(step)
            yield step
        messages = with_results((*turn.messages, *map(next_message, results)), tools)
        turn = replace(turn, messages=messages, approvals=None)
        async for event in _rounds(turn, inner, spec.max_rounds, offer, caller):
            yield event

    return timed("tools", body, inner, kit.clock)


async def _rounds(
    turn: Turn, inner: Respond, max_rounds: int, offer: Offer, caller: Caller
) -> AsyncIterator[Event]:
    """Let the model answer and call in turns until it calls no more, or may not."""
    theirs, this, wrong = turn.tools, Round(), 0  # rounds with calls that could not be run
    for left in reversed(range(max_rounds + 1)):
        turn = replace(turn, tools=(*offer.specs(), *theirs) if wrong < MOST_WRONG else ())
        async for event in this.events(inner(turn)):
            yield event
        ours = [called for called in this.called if called.call.name not in offer.callers]
        if this.broken_off or not ours:
            break
        results, waiting = list[ToolResult](), False
        async for step in caller.run(ours, run=left > 0):
            if isinstance(step, ToolResult):
                results.append(step)
            else:
                waiting = waiting or step.verdict == "waiting"
            yield step
        wrong += caller.had_mistakes
        if waiting:
            this.done = Done("tool_calls", by="tools")
            break  # a person has to decide first
        if len(ours) < len(this.called):
            break  # the caller has to run its own calls first
        if not left or this.num_tokens >= turn.decoding.max_tokens:
            this.done = Done("length", by="tools")
            break
        pause = "\n" if this.text.strip() else ""
        if pause:
            yield Text(pause, by="tools")
        turn, this = next_turn(turn, this, results), this.next(pause)
        if wrong >= MOST_WRONG:  # the model cannot write this call: it has to answer without
            turn = replace(turn, tool_choice="none")
    yield this.done


def _told(offer: Offer, withheld: Mapping[str, str]) -> list[ToolDecision]:
    """What the model is shown, and what is kept from it and why."""
    found = list[ToolDecision]()
    by_reason: dict[str, list[str]] = {}
    for name, why in withheld.items():
        by_reason.setdefault(why, []).append(name)
    if hidden := offer.hidden():
        by_reason[f"{len(offer.tools)} tools are more than search_above"] = hidden
    found += [_named("withheld", names, why) for why, names in by_reason.items()]
    if shown := [spec.name for spec in offer.specs()]:
        found.append(_named("offered", shown))
    return found


def _named(verdict: ToolVerdict, names: Sequence[str], detail: str = "") -> ToolDecision:
    more = f"{len(names)} in all" if len(names) > MAX_NAMED else ""
    return ToolDecision(verdict, tuple(names[:MAX_NAMED]), detail="; ".join(x for x in (detail, more) if x))
