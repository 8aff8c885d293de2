"""A server that answers each request in a second, or never; run as a process by test_server_ops_drain.py. Argument: seconds to drain."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

from scripted import Scripted

from demeanor.core.types import Done, Event, Respond, Text, Turn
from demeanor.server.admission import Operations
from demeanor.server.application import app
from demeanor.server.lifecycle import Life


class Slow(Scripted):
    def respond(self, model_id: str) -> Respond:
        return self.answer

    async def answer(self, turn: Turn) -> AsyncIterator[Event]:
        yield Text("slowly")
        try:
            await asyncio.sleep(1000 if "never" in turn.messages[-1].content else 1)
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise
        yield Text(" but surely")
        yield Done("stop")


async def nothing() -> None:
    print("reload", flush=True)


if __name__ == "__main__":
    life = Life()
    served: Any = app(Slow(), operations=Operations(ready=life.ready))
    life.run(
        served,
        host="127.0.0.1",
        port=0,
        drain_s=float(sys.argv[1]),
        log_config=None,
        reload=nothing,
        started=lambda port: print(port, flush=True),
    )
    print("closed", flush=True)
