"""Which turns share a generation: those whose weights read the same, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from demeanor.core.types import Decoding, Done, Event, Message, Respond, Text, ToolSpec, Turn, complete
from demeanor.engine.respond import cached

TURN = Turn(
    (Message("user", "Add 1 and 2."),),
    Decoding(temperature=0),
    (ToolSpec("add", "adds", {"type": "object", "required": ["a"]}),),
)


def made(turns: list[Turn]) -> int:
    """How many generations so many turns take."""
    asked: list[Turn] = []

    async def weights(turn: Turn) -> AsyncIterator[Event]:
        asked.append(turn)
        await asyncio.sleep(0)
        yield Text("3")
        yield Done("stop")

    async def ask() -> None:
        respond = cached(weights, "weights", {})
        await asyncio.gather(*(complete(respond, turn) for turn in turns))

    asyncio.run(ask())
    return len(asked)


def test_equal_turns_share_one_generation_whoever_asks() -> None:
    assert made([TURN, replace(TURN, user="ann", id="2", variant="other"), TURN]) == 1


def test_a_tool_of_the_same_name_with_other_arguments_or_strictness_is_read_otherwise() -> None:
    (tool,) = TURN.tools
    others = [
        replace(tool, parameters={"type": "object", "required": ["b"]}),
        replace(tool, description="sums"),
        replace(tool, strict=True),
    ]
    assert made([TURN, *(replace(TURN, tools=(other,)) for other in others)]) == 4


def test_a_draw_without_a_seed_is_never_shared() -> None:
    free = replace(TURN, decoding=Decoding(temperature=1.0))
    assert made([free, free]) == 2
    assert made([replace(free, decoding=Decoding(temperature=1.0, seed=s)) for s in (1, 1, 2)]) == 2


def test_other_weights_never_share_an_answer() -> None:
    def said_by(text: str) -> Respond:
        async def weights(turn: Turn) -> AsyncIterator[Event]:
            yield Text(text)
            yield Done("stop")

        return weights

    async def ask() -> list[str]:
        memory: dict[Any, asyncio.Future[list[Event]]] = {}
        responds = [cached(said_by(text), text, memory) for text in ("sft", "dpo", "sft")]
        return [(await complete(respond, TURN)).text for respond in responds]

    assert asyncio.run(ask()) == ["sft", "dpo", "sft"]
