"""What every file of the layers folder must keep to; a new file is tested the moment it exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from demeanor.core import registry
from demeanor.core.types import (
    Decoding,
    Done,
    Event,
    Message,
    Passage,
    Respond,
    Text,
    Timing,
    Turn,
    Usage,
    complete,
)
from demeanor.layers import Kit, compose
from demeanor.layers.tools import load
from demeanor.stack.stack import LAYERS
from tests.conftest import each

RULES = """
rules:
- {name: card, on: both, detector: card, reason: a card number, reply: No card numbers.}
- {name: tide, on: output, pattern: "tides? table", action: redact, reason: an example, hold: window}
"""
SETTINGS: dict[str, dict[str, Any]] = {  # of layers with settings that have no default
    "record": {},
    "limits": {"requests_per_minute": 100, "tokens_per_minute": 10_000},
    "policy": {"rules": "policy.yaml"},
    "tools": {"allow": ["calculator"]},
    "retrieval": {"index": "notices"},
    "prompt": {"text": "Be brief."},
}
KINDS = registry.known(LAYERS)


@dataclass(frozen=True)
class Whistle:
    """An event that no layer has heard of."""

    by: str = "weights"


class Ticking:
    """Every look at the clock costs a millisecond."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    (tmp_path / "policy.yaml").write_text(RULES)
    (tmp_path / "notices").mkdir()

    async def store(turn: Turn, events: Sequence[Event], started: datetime, finished: datetime) -> None:
        await asyncio.sleep(0)

    return Kit(
        root=tmp_path,
        clock=Ticking(),
        now=lambda: datetime(2026, 11, 23, tzinfo=UTC),
        count_tokens=lambda messages, tools: 7,
        tools=load(["calculator"]),
        open_index=lambda folder, search: (
            lambda query, k: [Passage("today#1", "The ferry leaves at 9.", 1.5, "today")]
        ),
        open_store=lambda url: lambda *a: store(*a),
    )


def layer(kind: str, inner: Respond, kit: Kit) -> Respond:
    module = registry.entry(LAYERS, kind)
    return compose([(module.Spec(**SETTINGS.get(kind, {})), module)], inner, kit)


class Inner:
    """Answers with the given events and remembers how it was called and whether it was closed."""

    def __init__(self, *events: Any, wait_s: float = 0.0) -> None:
        self.events = events or (
            Text("The ferry "),
            Whistle(),
            Text("leaves at 9."),
            Usage(9, 2),
            Timing("weights", 1.0),
            Done("stop"),
        )
        self.turns: list[Turn] = []
        self.closed, self.wait_s = 0, wait_s

    async def __call__(self, turn: Turn) -> AsyncIterator[Event]:
        self.turns.append(turn)
        try:
            for event in self.events:
                await asyncio.sleep(self.wait_s)
                yield event
        finally:
            self.closed += 1


TURN = Turn((Message("user", "When does the ferry leave?"),), Decoding(max_tokens=50))


async def run(respond: Respond) -> list[Any]:
    return [event async for event in respond(TURN)]


@pytest.mark.parametrize("kind", KINDS)
async def test_the_answer_passes_and_done_comes_once_and_last(kind: str, kit: Kit) -> None:
    events = await run(layer(kind, Inner(), kit))
    assert [i for i, e in enumerate(events) if isinstance(e, Done)] == [len(events) - 1]
    assert "".join(e.text for e in events if isinstance(e, Text)) == "The ferry leaves at 9."
    assert events[-1] == Done("stop")
    assert Usage(9, 2) in events


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_events_pass_through(kind: str, kit: Kit) -> None:
    assert (await run(layer(kind, Inner(), kit))).count(Whistle()) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_the_layer_tells_its_own_time_once_and_inner_times_pass(kind: str, kit: Kit) -> None:
    events = await run(layer(kind, Inner(), kit))
    timings = [e for e in events if isinstance(e, Timing)]
    assert [t.by for t in timings] == ["weights", kind]
    assert timings[1].ms > 0
    assert events[-2] == timings[1]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_event_says_which_layer_made_it(kind: str, kit: Kit) -> None:
    assert {e.by for e in await run(layer(kind, Inner(), kit))} <= {kind, "weights"}


@pytest.mark.parametrize("kind", KINDS)
async def test_waiting_for_inner_layers_and_for_the_reader_is_not_the_layers_time(
    kind: str, kit: Kit
) -> None:
    clock = lambda: asyncio.get_running_loop().time()  # noqa: E731
    respond = layer(kind, Inner(wait_s=0.02), Kit(**{**vars(kit), "clock": clock, "shared": {}}))
    own_ms = 0.0
    async for event in respond(TURN):
        await asyncio.sleep(0.02)
        if isinstance(event, Timing) and event.by == kind:
            own_ms = event.ms
    assert 0 < own_ms < 95  # five events, twice 20 ms each, are 240 ms of waiting


@pytest.mark.parametrize("kind", KINDS)
async def test_a_reader_who_leaves_closes_the_inner_answer_at_once(kind: str, kit: Kit) -> None:
    inner = Inner(*[Text("The ferry ") for _ in range(50)], Done("stop"))
    events = layer(kind, inner, kit)(TURN)
    task = asyncio.create_task(anext(events))  # type: ignore[arg-type]
    await asyncio.sleep(0.005)
    if not task.done():  # it holds text back: cut it off while it waits
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await events.aclose()  # type: ignore[attr-defined]
    assert inner.closed == len(inner.turns)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_inner_error_passes_unchanged(kind: str, kit: Kit) -> None:
    async def broken(turn: Turn) -> AsyncIterator[Event]:
        yield Text("The ")
        raise KeyError("engine")

    with pytest.raises(KeyError, match="engine"):
        await run(layer(kind, broken, kit))


@pytest.mark.parametrize("kind", KINDS)
async def test_the_turn_given_is_not_changed_and_behaviour_is_declared(kind: str, kit: Kit) -> None:
    inner = Inner()
    before = repr(TURN)
    await run(layer(kind, inner, kit))
    assert repr(TURN) == before
    if not registry.entry(LAYERS, kind).BEHAVIOUR:
        assert inner.turns == [TURN], f"{kind} says it never changes an answer, and changed the turn"


@pytest.mark.parametrize("kind", KINDS)
async def test_turns_side_by_side_do_not_mix(kind: str, kit: Kit) -> None:
    async def echo(turn: Turn) -> AsyncIterator[Event]:
        for word in turn.messages[-1].content.split():
            await asyncio.sleep(0)
            yield Text(f"{word} ")
        yield Done("stop")

    respond = layer(kind, echo, kit)
    asked = [f"ferry {i} of {i + 1}" for i in range(20)]
    answers = await asyncio.gather(
        *(complete(respond, Turn((Message("user", text),), Decoding(max_tokens=9))) for text in asked)
    )
    assert [a.text.strip() for a in answers] == asked


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_declares_what_a_layer_declares(kind: str) -> None:
    module = registry.entry(LAYERS, kind)
    assert module.__doc__
    assert isinstance(module.BEHAVIOUR, bool)
    for name, field in registry.spec_of(LAYERS, kind).model_fields.items():
        assert field.description, f"{kind}.{name} has no description"


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_field_that_nobody_reads_is_a_mistake(kind: str) -> None:
    module = registry.entry(LAYERS, kind)
    source = Path(str(module.__file__)).read_text()
    for name in each(module.Spec.model_fields):
        assert f"spec.{name}" in source, f"{kind}: no code reads {name}"


async def test_the_whole_stack_in_order_answers(kit: Kit) -> None:
    order = ["record", "limits", "policy", "tools", "retrieval", "prompt"]
    modules = [registry.entry(LAYERS, kind) for kind in order]
    inner = Inner()
    respond = compose([(m.Spec(**SETTINGS[k]), m) for k, m in zip(order, modules)], inner, kit)
    events = await run(respond)
    assert [e.by for e in events if isinstance(e, Timing)] == ["weights", *reversed(order)]
    assert [m.role for m in inner.turns[0].messages] == ["system", "data", "user"]
    assert events[-1] == Done("stop")
    assert sum(isinstance(e, Done) for e in events) == 1
