"""Many turns over a real socket, a part of them hung up on: no slot is lost, nothing grows, and what was acknowledged is recorded."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from demeanor.app import StackRuntime
from demeanor.serving import ServedStack
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.app import tiny
from tests.server.live import served


def resident_mib() -> float:
    """Memory of this process."""
    return (
        next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmRSS")
        )
        / 1024
    )


async def turn(port: int, rng: random.Random, number: int) -> str | None:
    """Ask something, plain or streamed; hang up now and then. The id of a completion that was received whole."""
    stream, leave = rng.random() < 0.5, rng.random() < 0.1
    body = json.dumps(
        {
            "model": rng.choice(["tiny-desk", "tiny-desk", "tiny-desk:sft"]),
            "stream": stream,
            "temperature": 1.0,
            "seed": number,
            "max_tokens": 24,
            "messages": [{"role": "user", "content": f"Who runs the ferry number {rng.randrange(50)}?"}],
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        + f"content-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    await writer.drain()
    try:
        if leave:
            await asyncio.sleep(rng.random() * 0.01)
            return None
        text = await reader.read()
        assert b" 200 " in text.split(b"\r\n", 1)[0], text[:300]
        assert not stream or b"data: [DONE]" in text
        return "chatcmpl-" + text.split(b'"id":"chatcmpl-', 1)[1].split(b'"', 1)[0].decode()
    finally:
        writer.close()


def soak(
    trained: tuple[Stack, Runs], monkeypatch: pytest.MonkeyPatch, folder: Path, turns: int
) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    tiny.write(folder)
    stack, runs = trained
    runtime = StackRuntime(stack, runs, num_slots=8)
    rng, acknowledged, sizes = random.Random(0), list[str](), list[float]()

    async def storm(port: int) -> None:
        left = iter(range(turns))

        async def caller() -> None:
            for number in left:
                if number % (turns // 10) == 0:
                    sizes.append(resident_mib())
                if (got := await turn(port, rng, number)) is not None:
                    acknowledged.append(got)

        await asyncio.gather(*(caller() for _ in range(12)))

    started = time.monotonic()
    with served(ServedStack(runtime)) as address:  # type: ignore[arg-type]
        asyncio.run(storm(int(address.rpartition(":")[2])))
        engines = [runtime.weights(s).engine for s in ("sft", "dpo")]
        until = time.monotonic() + 120
        while any(e.load != (0, 0) for e in engines) and time.monotonic() < until:
            time.sleep(0.05)
        loads = [e.load for e in engines]
        free = [e.cache_use.free_slots for e in engines]
        used = [e.cache_use.used for e in engines]
    runtime.close()
    rows = {row[0] for row in sqlite3.connect(folder / "tiny.db").execute("SELECT id FROM turns")}
    return {
        "turns": turns,
        "acknowledged": len(acknowledged),
        "lost": len(set(acknowledged) - rows),
        "loads": loads,
        "free": free,
        "used pages": used,
        "mib": sizes,
        "seconds": time.monotonic() - started,
    }


def judge(found: dict[str, Any]) -> None:
    assert found["loads"] == [(0, 0), (0, 0)], "an engine still works for somebody who left"
    assert found["free"] == [8, 8], "a slot is lost"
    assert found["used pages"] == [0, 0], "a page is lost"
    assert found["lost"] == 0, "an answer was given whole and is not recorded"
    assert found["acknowledged"] > 0.8 * found["turns"]


def test_a_few_hundred_turns_lose_no_slot_and_no_record(
    trained: tuple[Stack, Runs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judge(soak(trained, monkeypatch, tmp_path, 300))


@pytest.mark.experiment
def test_ten_thousand_turns_do_not_grow(
    trained: tuple[Stack, Runs], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = soak(trained, monkeypatch, tmp_path, 10_000)
    print(json.dumps(found, indent=1))
    judge(found)
    assert max(found["mib"][5:]) - found["mib"][3] < 16, "memory after the first third stays within 16 MiB"
