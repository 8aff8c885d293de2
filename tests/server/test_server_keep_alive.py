"""A stream that has nothing to send says that it is alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from demeanor.core.errors import RequestError
from demeanor.server.schemas import ResponseObject
from demeanor.server.streaming import EventStream


class Part(ResponseObject):
    text: str


async def sent_by(chunks: AsyncGenerator[ResponseObject, None]) -> list[dict[str, Any]]:
    stream, sent = EventStream(chunks, "req_1"), list[dict[str, Any]]()
    stream.keep_alive_s = 0.05

    async def receive() -> dict[str, str]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await stream({"type": "http"}, receive, send)
    return sent


async def slow(error: bool = False) -> AsyncGenerator[ResponseObject, None]:
    await asyncio.sleep(0.18)
    if error:
        raise RequestError("No.", status=503)
    yield Part(text="a")


async def test_a_silent_stream_sends_comments_until_the_answer_comes() -> None:
    head, *body = await sent_by(slow())
    frames = [message["body"] for message in body]
    comments = frames.count(b": keep-alive\n\n")
    assert (head["type"], head["status"]) == ("http.response.start", 200)
    assert 1 <= comments <= 3
    assert frames[comments:] == [b'data: {"text":"a"}\n\n', b"data: [DONE]\n\n", b""]


async def test_an_error_after_a_comment_is_the_last_event() -> None:
    frames = [message.get("body", b"") for message in await sent_by(slow(error=True))]
    assert b'"message":"No."' in frames[-2]


async def test_an_error_before_anything_was_sent_stays_an_http_status() -> None:
    async def at_once() -> AsyncGenerator[ResponseObject, None]:
        raise RequestError("No.", status=503)
        yield Part(text="")

    with pytest.raises(RequestError):
        await sent_by(at_once())
