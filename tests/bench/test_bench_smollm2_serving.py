"""The load of bench.smollm2_serving: a cell ends in time, and a request that still waits is a lower bound."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from bench.smollm2_serving import Asked, Prompt, quantile, storm, summed
from tests.conftest import each


def test_a_percentile_counts_a_request_that_still_waits_as_one_that_waits_longer() -> None:
    came = [(float(x), True) for x in (40, 10, 30, 20)]
    assert [quantile(came, q) for q in (25, 50, 95)] == [(10.0, True), (20.0, True), (40.0, True)]
    cut = [(10.0, True), (15.0, False), (20.0, True), (30.0, True), (40.0, False)]
    assert quantile(cut, 20) == (10.0, True)
    assert quantile(cut, 50) == (30.0, True)  # 4/5 * 2/3 = 0.53 wait at 20, 4/5 * 1/3 at 30
    assert quantile(cut, 95) == (40.0, False), "nobody knows when the last one's would have come"
    assert math.isnan(quantile([], 50)[0])


def test_tokens_of_a_cell_are_those_that_came_in_its_time() -> None:
    whole = Asked(True, 100.0, [1.0, 1.5, 2.5], counted=64, ended=True)
    cut = Asked(False, 102.0, [3.0, 3.25])
    waiting = Asked(False, 104.0)
    refused = Asked(True, 105.0, error="ConnectionError: 503")
    found = summed([whole, cut, waiting, refused], 4, 10.0, 110.0)
    assert (found["tokens"], found["tokens_per_s"]) == (66, 6.6)  # 64 + 2 in 10 s
    assert (found["requests"], found["errors"], found["ended"], found["without_first"]) == (4, 1, 1, 1)
    assert found["first"]["p50"] == (3000.0, True)  # 1,000 and 3,000 came, one waits for 6,000
    assert found["own"]["p95"] == (6000.0, False)
    assert found["shared"]["p95"] == (1000.0, True)
    assert found["gap_ms"]["p50"] == 500.0


async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that streams two pieces, refuses what says `refuse`, and never answers what says `never`."""
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length:")[1].split()[0])
    asked = json.loads(await reader.readexactly(size))["messages"][0]["content"]
    if asked == "never":
        await asyncio.sleep(600)
    if asked == "refuse":
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\n\r\nbusy")
    else:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for piece in each(("two", " pieces")):
            writer.write(
                b"data: " + json.dumps({"choices": [{"delta": {"content": piece}}]}).encode() + b"\n\n"
            )
        writer.write(b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\ndata: [DONE]\n\n')
    writer.close()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("hello", {"errors": 0}), ("never", {"errors": 0, "ended": 0, "requests": 2, "without_first": 2})],
)
async def test_callers_ask_again_until_the_time_is_over_and_are_cut_off(
    text: str, wanted: dict[str, int]
) -> None:
    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    endless = iter(lambda: Prompt(text, True), None)
    found = await storm(port, "any", 2, endless, 0.5)
    server.close()
    assert {key: found[key] for key in wanted} == wanted
    assert found["requests"] >= 2
    if text == "hello":
        assert found["tokens_per_s"] > 0
        assert found["first"]["p50"][1] is True


async def test_a_refusal_is_an_error_and_says_which() -> None:
    server = await asyncio.start_server(answered, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    found = await storm(port, "any", 1, iter(lambda: Prompt("refuse", False), None), 0.3)
    assert found["errors"] == found["requests"] >= 1
    assert "503" in found["error"]
    server.close()
