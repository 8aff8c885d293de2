"""Runs the tools that the model calls and lets it go on with their results.

In: a turn. Out: the model's events, a ToolResult after each call that was run, one Done. The model is asked again with the results
as `tool` messages (no authority) until it answers. Text is passed on as it is written, so words before a call stay part of the
answer. Calls to the caller's own tools are the caller's to run. Mistakes of a call are told to the model, not to the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from demeanor import registry
from demeanor.errors import unknown
from demeanor.layers._call import called, failed
from demeanor.layers._kit import Kit
from demeanor.layers._round import Round
from demeanor.layers._timed import timed
from demeanor.types import Done, Event, Message, Respond, Text, ToolResult, Trust, Turn

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
