"""The tokens of a long prompt are made in a thread, so that other requests go on meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from demeanor.core.types import Decoding, Message, Turn, complete
from demeanor.engine.respond import model_respond
from demeanor.engine.scheduler import Piece, Request
from demeanor.text.template import Rendered
from demeanor.text.tool_calls import CallReader


class Watched:
    """A template that notes in which thread it renders."""

    name, stop, jinja, stop_tokens = "watched", (), "", frozenset({0})

    def __init__(self) -> None:
        self.threads: list[int] = []

    def render(self, *_: Any, **__: Any) -> Rendered:
        self.threads.append(threading.get_ident())
        return Rendered([1, 2], [False, False])

    def reader(self) -> CallReader:
        return CallReader("<tool_call>")


class Silent:
    """An engine that ends every answer at once."""

    async def stream(self, request: Request) -> AsyncIterator[Piece]:
        yield Piece(0, "", 0.0, finish="stop")


@pytest.mark.parametrize(("size", "in_loop"), [(10, True), (100_000, False)])
def test_a_long_prompt_is_rendered_off_the_event_loop(size: int, in_loop: bool) -> None:
    template = Watched()
    turn = Turn((Message("user", "x" * size),), Decoding())
    done = asyncio.run(complete(model_respond(Silent(), template), turn))  # type: ignore[arg-type]
    assert done.finish_reason == "stop"
    assert [thread == threading.get_ident() for thread in template.threads] == [in_loop]
