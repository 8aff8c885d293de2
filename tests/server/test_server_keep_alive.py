"""A stream that has nothing to send says that it is alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import pytest

from demeanor.core.errors import RequestError
from demeanor.server.schemas import ResponseObject
from demeanor.server.streaming import EventStream


class Part(ResponseObject):
    text: str


Sent = list[dict[str, Any]]


async def sent_by(answer: Callable[[Sent], AsyncGenerator[ResponseObject, None]]) -> Sent:
    """What is sent of an answer, which sees it and so can wait for it."""
    sent: Sent = []
    stream = EventStream(answer(sent), "req_1")
    stream.keep_alive_s = 0.05

    async def receive() -> dict[str, str]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await stream({"type": "http"}, receive, send)
    return sent


async def slow(sent: Sent, error: bool = False) -> AsyncGenerator[ResponseObject, None]:
    while len(sent) < 3:  # the head and two comments
        await asyncio.sleep(0.005)
    if error:
        raise RequestError("No.", status=503)
    yield Part(text="a")


async def test_a_silent_stream_sends_comments_until_the_answer_comes() -> None:
    head, *body = await sent_by(slow)
    frames = [message["body"] for message in body]
    comments = frames.count(b": keep-alive\n\n")
    assert (head["type"], head["status"]) == ("http.response.start", 200)
    assert 2 <= comments <= 3
    assert frames[comments:] == [b'data: {"text":"a"}\n\n', b"data: [DONE]\n\n", b""]


async def test_an_error_after_a_comment_is_the_last_event() -> None:
    frames = [message.get("body", b"") for message in await sent_by(partial(slow, error=True))]
    assert b'"message":"No."' in frames[-2]


async def test_an_error_before_anything_was_sent_stays_an_http_status() -> None:
    async def at_once(sent: Sent) -> AsyncGenerator[ResponseObject, None]:
        raise RequestError("No.", status=503)
        yield Part(text="")

    with pytest.raises(RequestError):
        await sent_by(at_once)
