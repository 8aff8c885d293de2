"""A server's life: it begins, swaps what it serves for something newer, drains and ends.

In: an app, and what to do on SIGHUP and at intervals. SIGTERM and Ctrl-C: no new connections, running requests end, exit 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from demeanor.core.types import Event, Respond, Turn
from demeanor.server.assistant import ServedAssistant

log = logging.getLogger("demeanor.server")
GRACE_S = 1.0
"""How long what was swapped out stays for a request that has chosen it and not yet begun."""


@dataclass(eq=False)
class Version:
    """One assistant that is or was served; `close` frees what only it needs."""

    assistant: ServedAssistant
    close: Callable[[], None]
    turns: int = 0


@dataclass(eq=False)
class Current:
    """An Assistant that is whatever was last put there; answers that have begun are ended by the one that began them."""

    now: Version

    def __getattr__(self, name: str) -> Any:
        return getattr(self.now.assistant, name)

    def respond(self, model_id: str) -> Respond:
        version = self.now
        return _held(version, version.assistant.respond(model_id))

    async def embed(self, model_id: str, texts: Sequence[tuple[int, ...]]) -> list[list[float]]:
        version = self.now
        version.turns += 1
        try:
            vectors: list[list[float]] = await version.assistant.embed(model_id, texts)  # type: ignore[attr-defined, unused-ignore]
            return vectors
        finally:
            version.turns -= 1

    def swap(self, new: Version, grace_s: float = GRACE_S) -> asyncio.Task[None]:
        """Serve `new` from now on; the task ends when the old one's last turn has ended and it is closed."""
        old, self.now = self.now, new
        return asyncio.create_task(self._retire(old, grace_s))

    async def _retire(self, old: Version, grace_s: float) -> None:
        await asyncio.sleep(grace_s)
        while old.turns:
            await asyncio.sleep(0.05)
        old.close()


def _held(version: Version, inner: Respond) -> Respond:
    async def respond(turn: Turn) -> AsyncIterator[Event]:
        version.turns += 1
        events = inner(turn)
        try:
            async for event in events:
                yield event
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()
            version.turns -= 1

    return respond


@dataclass
class Life:
    """Whether a server runs or drains; made before its app, which wants to know."""

    stopping: Callable[[], bool] = lambda: False

    def ready(self) -> bool:
        return not self.stopping()

    def run(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        drain_s: float,
        log_config: dict[str, Any] | None,
        reload: Callable[[], Awaitable[None]],
        changed: Callable[[], bool] | None = None,
        every_s: float = 1.0,
        started: Callable[[int], None] = lambda port: None,
    ) -> None:
        """Serve until SIGTERM or Ctrl-C. SIGHUP, and `changed` where it is given and true, call for `reload`; `started` gets the port."""
        import uvicorn

        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            log_config=log_config,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=drain_s,  # type: ignore[arg-type]  # a fraction of a second is allowed too
        )
        server = uvicorn.Server(config)
        self.stopping = lambda: server.should_exit
        # uvicorn raises both again when it has drained
        before = {sig: signal.signal(sig, _nothing) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(_serve(server, reload, changed, every_s, started))
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def _nothing(*_: object) -> None:
    pass


async def _serve(
    server: Any,
    reload: Callable[[], Awaitable[None]],
    changed: Callable[[], bool] | None,
    every_s: float,
    started: Callable[[int], None],
) -> None:
    hung_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)

    async def announce() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        started(server.servers[0].sockets[0].getsockname()[1])

    async def listen() -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hung_up.wait(), every_s if changed else None)
            asked = hung_up.is_set()
            hung_up.clear()
            try:
                if asked or (changed and await asyncio.to_thread(changed)):
                    await reload()
            except Exception:  # whatever a new file brings up, the old one goes on
                log.exception("reload failed; what was served is served on")

    tasks = [asyncio.create_task(announce()), asyncio.create_task(listen())]
    try:
        await server.serve()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
