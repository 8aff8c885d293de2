"""What is served can be swapped while it answers: answers end as they began, and the old one is closed after its last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, cast

import httpx
from scripted import Scripted, body

from demeanor.core.types import Decoding, Done, Event, Message, Respond, Text, Turn
from demeanor.server.application import app
from demeanor.server.assistant import ServedAssistant
from demeanor.server.lifecycle import Current, Version

TURN = Turn((Message("user", "hi"),), Decoding())


class Named(Scripted):
    """Says its name five times, slowly."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said, self.stack_key, self.open, self.begun = said, f"key-{said}", True, 0

    def respond(self, model_id: str) -> Respond:
        return self.speak

    async def speak(self, turn: Turn) -> AsyncGenerator[Event, None]:
        self.begun += 1
        for _ in range(5):
            await asyncio.sleep(0.01)
            assert self.open, "closed while it answers"
            yield Text(self.said)
        yield Done("stop")

    def close(self) -> None:
        self.open = False


async def test_running_answers_end_as_they_began_and_new_ones_are_the_new_stacks() -> None:
    old, new = Named("a"), Named("b")
    current = Current(Version(old, old.close))
    made = app(cast(ServedAssistant, current))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://localhost") as client:

        async def ask() -> Any:
            return (await client.post("/v1/chat/completions", json=body())).json()["choices"][0]["message"][
                "content"
            ]

        running = [asyncio.create_task(ask()) for _ in range(4)]
        while old.begun < 4:
            await asyncio.sleep(0)
        retired = current.swap(Version(new, new.close), grace_s=0.0)
        assert (await client.get("/healthz")).json()["stack_key"] == "key-b"
        assert await ask() == "bbbbb"
        assert await asyncio.gather(*running) == ["aaaaa"] * 4
        await retired
    assert (old.open, new.open) == (False, True)


async def test_an_answer_that_is_left_lets_go_of_what_was_swapped_out() -> None:
    old, new = Named("a"), Named("b")
    current = Current(Version(old, old.close))
    answer = current.respond("x")(TURN)
    await anext(answer)
    retired = current.swap(Version(new, new.close), grace_s=0.0)
    await asyncio.sleep(0.1)
    assert old.open, "somebody reads"
    await answer.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(retired, 60)
    assert not old.open


async def test_a_request_that_has_chosen_the_old_one_and_not_yet_begun_is_answered_by_it() -> None:
    old, new = Named("a"), Named("b")
    current = Current(Version(old, old.close))
    chosen = current.respond("x")
    retired = current.swap(Version(new, new.close), grace_s=1.0)
    await asyncio.sleep(0.05)
    said = "".join([e.text async for e in chosen(TURN) if isinstance(e, Text)])
    assert said == "aaaaa"
    await retired
    assert not old.open
