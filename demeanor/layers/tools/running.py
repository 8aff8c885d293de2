"""What a turn's model is offered, and what happens to each of its calls: searched, refused, asked about, or run."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from demeanor.core.long_text import off_loop
from demeanor.core.types import (
    Messages,
    RunnableTool,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    ToolSpec,
    ToolVerdict,
    Turn,
)
from demeanor.layers.tools import tool_search
from demeanor.layers.tools.budget import ToolBudget
from demeanor.layers.tools.calls import arguments_of, failed, outcome

MANY = 64  # characters of a tool that a search reads, about
ASKED = "the stack asks before this tool is run"


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """The settings of the layer that hold for one turn; None: no limit."""

    approve: tuple[str, ...]
    search_above: int | None
    search_results: int
    max_calls: int | None
    timeout_s: float
    max_total_s: float | None
    max_result_chars: int
    max_total_chars: int | None


class Offer:
    """The tools of one turn: all of them, or a search with those that it has loaded."""

    def __init__(
        self,
        limits: TurnLimits,
        tools: Mapping[str, RunnableTool],
        callers: Collection[str],
        messages: Messages,
    ) -> None:
        """`callers` are the names of the caller's tools; tools that the conversation called before are loaded."""
        self.tools, self.callers = tools, callers
        self._open = True
        many = limits.search_above is not None and len(tools) > limits.search_above
        self.searches = many and tool_search.NAME not in {*tools, *callers}
        self._count = limits.search_results
        called = (call.name for message in messages for call in message.tool_calls)
        self._loaded = dict.fromkeys(name for name in called if name in tools)

    def close(self) -> None:
        """Offer nothing."""
        self._open = False

    def specs(self) -> tuple[ToolSpec, ...]:
        """What the model is shown now."""
        if not self._open:
            return ()
        if not self.searches:
            return tuple(tool.spec for tool in self.tools.values())
        return (tool_search.SPEC, *(self.tools[name].spec for name in self._loaded))

    def callable(self) -> Mapping[str, RunnableTool]:
        """The tools that a call may name; those that only a search would show are among them only when it has."""
        if not self._open:
            return {}
        return {name: self.tools[name] for name in self._loaded} if self.searches else self.tools

    def hidden(self) -> list[str]:
        """The tools that the model is not shown unless it searches."""
        return (
            [name for name in self.tools if name not in self._loaded] if self.searches and self._open else []
        )

    async def search(self, call: ToolCall) -> tuple[list[str], str]:
        """Load what fits a call of the search; return the names, and what the model reads."""
        query = str(json.loads(call.arguments)["query"])
        found = await off_loop(
            MANY * len(self.tools), lambda: tool_search.index_of(self.tools).best(query, self._count)
        )
        self._loaded |= dict.fromkeys(found)
        return found, tool_search.told(found, self.tools)


class _Search:
    """The search as a tool, so that its arguments are checked like any other's."""

    spec = tool_search.SPEC
    run: Callable[[Mapping[str, object]], object] = staticmethod(lambda arguments: "")


class Caller:
    """Runs the calls of one turn within its budget."""

    def __init__(self, limits: TurnLimits, clock: Callable[[], float], offer: Offer) -> None:
        self._limits, self._clock, self._offer = limits, clock, offer
        self._budget = ToolBudget(clock, limits.max_calls, limits.max_total_s, limits.max_total_chars)
        self.had_mistakes = False  # in the calls of the last `run`

    async def run(
        self, called: Sequence[ToolCalled], *, run: bool
    ) -> AsyncIterator[ToolDecision | ToolResult]:
        """Decide on calls, run side by side those that may be, and yield decisions and results in the order of the calls.

        A call that waits for a person has no result. Without `run` none is run: the turn has no round left.
        """
        refusals = [self._refused(each, run=run) for each in called]
        times = Counter(each.call.id for each in called)
        for i, each in enumerate(called):  # an approval names a call by its id
            if refusals[i][0] == "waiting" and (times[each.call.id] > 1 or not each.call.id):
                refusals[i] = ("malformed", "the call has no id of its own")
        self.had_mistakes = any(verdict == "malformed" for verdict, _ in refusals)
        async for event in self._all([each.call for each in called], refusals):
            yield event

    async def decided(self, turn: Turn) -> AsyncIterator[ToolCalled | ToolDecision | ToolResult]:
        """Run the calls of the last assistant message that a person allowed, and answer those that were denied."""
        if turn.approvals is None:
            return
        decisions = {approval.call_id: approval for approval in turn.approvals.decisions}
        last = next((m for m in reversed(turn.messages) if m.role == "assistant"), None)
        calls = [call for call in (last.tool_calls if last else ()) if call.id in decisions]
        refusals = list[tuple[ToolVerdict | None, str]]()
        for call in calls:
            approval = decisions[call.id]
            yield ToolCalled(call, by="tools")
            yield ToolDecision("approved" if approval.approved else "denied", (call.name,), call.id)
            if approval.approved:
                refusals.append(self._refused(ToolCalled(call), run=True, asked=True))
            else:
                said = f"; the person said: {approval.reason}" if approval.reason else ""
                refusals.append(("denied", f"the user did not allow this call, so it was not run{said}"))
        async for event in self._all(calls, refusals):
            yield event

    def _refused(
        self, called: ToolCalled, *, run: bool, asked: bool = False
    ) -> tuple[ToolVerdict | None, str]:
        """Why a call is not run, or nothing. `asked`: a person has allowed it."""
        call, offer = called.call, self._offer
        if not run:
            return "budget_spent", "too many calls"
        known = offer.tools if asked else offer.callable()
        searching = offer.searches and call.name == tool_search.NAME
        wrong = arguments_of(call, {call.name: _Search()} if searching else known)[1]
        if wrong:
            return "malformed", wrong
        if searching:
            return "searched", ""
        why = "" if asked else self._asks(called)
        if why:
            return "waiting", why
        spent = self._budget.take_call()
        return ("budget_spent", spent) if spent else (None, "")

    def _asks(self, called: ToolCalled) -> str:
        """Why a person has to allow a call first, by a rule of the policy or for its tool; empty if none has to."""
        tool = self._offer.tools[called.call.name]
        return str(getattr(called, "approval", "")) or asks_for(called.call.name, tool, self._limits.approve)

    async def _all(
        self, calls: Sequence[ToolCall], refusals: Sequence[tuple[ToolVerdict | None, str]]
    ) -> AsyncIterator[ToolDecision | ToolResult]:
        """Yield the decision and the result of each call; those without a refusal are run side by side."""
        limits, began = self._limits, self._clock()
        timeout_s = self._budget.timeout(limits.timeout_s)
        jobs = {
            i: asyncio.create_task(outcome(call, self._offer.tools, timeout_s, limits.max_result_chars))
            for i, (call, (verdict, _)) in enumerate(zip(calls, refusals))
            if verdict is None
        }
        try:
            for i, (call, (verdict, why)) in enumerate(zip(calls, refusals)):
                async for event in self._one(call, verdict, why, jobs.get(i)):
                    yield event
        finally:
            for job in jobs.values():
                job.cancel()
            if jobs:
                self._budget.spend(began)

    async def _one(
        self,
        call: ToolCall,
        verdict: ToolVerdict | None,
        why: str,
        job: asyncio.Task[tuple[ToolResult, ToolVerdict]] | None,
    ) -> AsyncIterator[ToolDecision | ToolResult]:
        if verdict == "waiting":
            yield ToolDecision("waiting", (call.name,), call.id, why)
        elif verdict == "searched":
            found, text = await self._offer.search(call)
            yield ToolDecision("searched", tuple(found), call.id)
            yield self._budget.cut(ToolResult(call.id, call.name, text))
        elif verdict is not None:
            if verdict != "denied":
                yield ToolDecision(verdict, (call.name,), call.id, why[:300])
            yield failed(call, why[: self._limits.max_result_chars])
        else:
            assert job is not None
            result, ended = await job
            yield ToolDecision(ended, (call.name,), call.id)
            yield self._budget.cut(result)


def asks_for(name: str, tool: RunnableTool, approve: Collection[str]) -> str:
    """Why a person has to allow every call of a tool; empty if none has to."""
    return ASKED if name in approve else str(getattr(tool, "needs_approval", ""))
