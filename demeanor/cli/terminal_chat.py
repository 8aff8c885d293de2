"""Talk to a variant in the terminal: the answer as it is written, then one line that says what the layers did."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from rich.console import Console

from demeanor.app import StackRuntime
from demeanor.core.errors import DemeanorError, RequestError
from demeanor.core.table import visible
from demeanor.core.types import (
    Event,
    LeftOut,
    Message,
    Messages,
    Passage,
    Prompted,
    Refusal,
    RuleHit,
    Text,
    Timing,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    Turn,
    Upstream,
    fold,
)
from demeanor.server.approvals import ApprovalField, Approver, CallDecision
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.runs import Runs

HELP = "/model ID switches the variant, /models lists them, /new forgets the conversation, /quit (or Ctrl-D) ends"


def run(stack: Stack, runs: Runs, *, model: str | None, ask: str | None) -> int:
    """Chat until the end of input, or ask one question."""
    runtime = StackRuntime(stack, runs)
    console = Console(highlight=False)
    try:
        variant = stack.resolve(model) if model else stack.resolve(stack.spec.name)
        if ask is not None:
            _answered(runtime, variant, (Message("user", ask),), console)
            return 0
        console.print(f"[bold]{variant.model_id}[/]  {HELP}", style="dim")
        return _converse(runtime, variant, console)
    finally:
        runtime.close()


def _converse(runtime: StackRuntime, variant: Stack, console: Console) -> int:
    messages: Messages = ()
    while True:
        try:
            line = console.input("[bold cyan]you[/] ").strip()
        except EOFError:
            console.print()
            return 0
        command, _, rest = line.partition(" ")
        try:
            if not line:
                continue
            if command in ("/quit", "/exit"):
                return 0
            if command == "/new":
                messages = ()
            elif command == "/models":
                console.print("\n".join(v.model_id for v in runtime.stack.offered()), style="dim")
            elif command == "/model":
                variant, messages = runtime.stack.resolve(rest.strip()), ()
                console.print(f"now {variant.model_id}", style="dim")
            elif command.startswith("/"):
                console.print(HELP, style="dim")
            else:
                asked = (*messages, Message("user", line))
                answer = _answered(runtime, variant, asked, console)
                messages = (*asked, Message("assistant", answer))
        except (DemeanorError, RequestError) as error:
            console.print(visible(str(error)), style="red", markup=False)


def _answered(runtime: StackRuntime, variant: Stack, messages: Messages, console: Console) -> str:
    """The answer to a conversation; calls that wait for a person are asked about, as often as there are any."""
    approver = Approver()
    turn = Turn(messages, replace(decoding_of(runtime.stack)), id="chat", user="terminal")
    while True:
        events = asyncio.run(_turn(runtime, variant, turn, console))
        done = fold(events)
        if done.refusal:
            return done.text
        waiting = asyncio.run(approver.waiting(turn, events, done.tool_calls, done.text))
        if waiting is None:
            return done.text
        decisions = [
            CallDecision(call_id=call.id, approve=_allowed(call, why, console))
            for call, why in waiting.reasons
        ]
        asked = Message("assistant", done.text, tool_calls=done.tool_calls)
        turn = replace(turn, messages=(*turn.messages, asked), id=f"{turn.id}+")
        given = ApprovalField(token=waiting.token, decisions=decisions)
        turn, _ = asyncio.run(approver.decided(turn, given))


def _allowed(call: ToolCall, why: str, console: Console) -> bool:
    """Whether the person at the terminal allows a call; without one to ask it is denied."""
    console.print(
        f"{visible(call.name)} {visible(call.arguments)}  ({visible(why)})", style="yellow", markup=False
    )
    try:
        return console.input("run it? [bold](y/N)[/] ").strip().lower() in ("y", "yes")
    except EOFError:
        console.print("denied: nobody is there to ask", style="dim")
        return False


async def _turn(runtime: StackRuntime, variant: Stack, turn: Turn, console: Console) -> list[Event]:
    events: list[Event] = []
    async for event in runtime.respond(variant)(turn):
        events.append(event)
        if isinstance(event, Text):
            console.out(visible(event.text), end="", highlight=False)
    done = fold(events)
    if done.refusal:
        console.out(visible(done.refusal.text), end="", highlight=False)
    console.print()
    console.print("  " + visible("; ".join(_clauses(events))), style="dim", markup=False)
    return events


def _clauses(events: list[Event]) -> list[str]:
    """One short clause per thing a layer did."""
    clauses: list[str] = []
    for event in events:
        match event:
            case Prompted(messages=added):
                clauses.append(f"prompt added {len(added)} message{'s' if len(added) != 1 else ''}")
            case Passage(id=name):
                clauses.append(f"read {name}")
            case ToolCalled(call=call):
                clauses.append(f"called {call.name} {call.arguments}")
            case ToolResult(content=content):
                clauses.append(f"got {content}")
            case Upstream(name=name, tried=tried, skipped=skipped) if tried or skipped:
                clauses.append(f"{name} answered instead of {', '.join([*(x for x, _ in tried), *skipped])}")
            case LeftOut(reason=reason):
                clauses.append(f"left out: {reason}")
            case ToolDecision(verdict="withheld", tools=names, detail=why):
                clauses.append(f"{len(names)} tools withheld ({why})")
            case ToolDecision(verdict="searched", tools=names):
                clauses.append(f"found {', '.join(names) or 'no tool'}")
            case Refusal(by=by, rule=rule, stage=stage):
                clauses.append(f"{by} refused the {stage} ({rule})")
            case RuleHit(by=by, rule=rule, stage=stage, outcome=outcome) if outcome != "blocked":
                clauses.append(f"{by} {outcome.replace('_', ' ')} the {stage} ({rule})")
    total = sum(e.ms for e in events if isinstance(e, Timing))
    return [*clauses, f"{total:.0f} ms"]
