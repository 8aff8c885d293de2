"""A server's life: it begins, swaps what it serves for something newer, drains and ends.

In: an app, and what to do on SIGHUP and at intervals. SIGTERM and Ctrl-C: no new connections, running requests end, exit 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp

from demeanor.core.types import Event, Messages, Respond, Turn
from demeanor.server.assistant import ModelCard, ServedAssistant, routed

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

    def route(self, model_id: str, user: str | None, messages: Messages) -> tuple[ModelCard, Respond]:
        version = self.now
        card, respond = routed(version.assistant, model_id, user, messages)
        return card, _held(version, respond)

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


@dataclass(frozen=True)
class TimeLimits:
    """How long a connection may take, in seconds, so that one that says nothing does not live for ever."""

    header_s: float = 10.0
    """From the first byte of a request (of a connection, from its beginning) to the end of its headers."""
    body_s: float = 30.0
    """From the headers to the end of the body."""
    idle_s: float = 30.0
    """Without a request between two of one connection; or without reading any further part of an answer."""


def timed_protocol(limits: TimeLimits) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with time limits; it has none for headers, unread bodies and readers that stop reading."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class TimedProtocol(H11Protocol):
        _reading: asyncio.TimerHandle | None = None
        _writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connection = transport.get_extra_info("socket")
            if connection is not None:  # a peer that has vanished is found out in about two minutes
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                if hasattr(socket, "TCP_KEEPIDLE") and connection.family != socket.AF_UNIX:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15)
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
            self._await_request()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._await_request()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.transport.is_closing():
                self._stalled()
            elif self.conn.their_state is h11.SEND_BODY:
                self._await_request()

        def send_400_response(self, msg: str) -> None:
            """Answer bytes that are no HTTP; a request that they belong to ends as if its client had left."""
            if self.cycle is not None and not self.cycle.response_complete:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                super().send_400_response(msg)
            else:  # an answer has begun
                self.transport.close()

        def _unsupported_upgrade_warning(self) -> None:
            pass  # a client may ask for what it likes

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled()

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._writing)
            self._writing = None

        def connection_lost(self, exc: Exception | None) -> None:
            _cancel(self._reading, self._writing)
            super().connection_lost(exc)

        def _await_request(self) -> None:
            """Give headers, and a body that nobody reads any more, their time; further bytes do not lengthen it."""
            if self.conn.their_state is h11.IDLE:
                wait_s = limits.header_s
            elif self.conn.their_state is h11.SEND_BODY and (not self.cycle or self.cycle.response_complete):
                wait_s = limits.body_s
            else:
                _cancel(self._reading)
                self._reading = None
                return
            if self._reading is None:
                self._reading = self.loop.call_later(wait_s, self._end)

        def _end(self) -> None:
            self._reading = None
            if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing():
                self.transport.close()
                self._stalled()

        def _stalled(self) -> None:
            if self._writing is None:
                self._writing = self.loop.call_later(limits.idle_s, self.transport.abort)

    return TimedProtocol


def _cancel(*timers: asyncio.TimerHandle | None) -> None:
    for timer in timers:
        if timer is not None:
            timer.cancel()


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
        limits: TimeLimits = TimeLimits(),
        listener: socket.socket | None = None,
        beside: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Serve until SIGTERM or Ctrl-C, on `listener` or on an address of its own; `beside` runs meanwhile.

        SIGHUP, and `changed` where it is given and true, call for `reload`; `started` gets the port.
        """
        import uvicorn

        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            log_level="warning",
            log_config=log_config,
            access_log=False,
            lifespan="off",
            http=timed_protocol(limits),
            ws="none",
            timeout_keep_alive=limits.idle_s,  # type: ignore[arg-type]  # a fraction of a second is allowed too
            timeout_graceful_shutdown=drain_s,  # type: ignore[arg-type]  # a fraction of a second is allowed too
        )
        server = uvicorn.Server(config)
        self.stopping = lambda: server.should_exit
        # uvicorn raises both again when it has drained
        before = {sig: signal.signal(sig, _nothing) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
                runner.run(_serve(server, reload, changed, every_s, started, listener, beside))
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
    listener: socket.socket | None,
    beside: Callable[[], Awaitable[None]] | None,
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
    if beside is not None:
        tasks.append(asyncio.ensure_future(beside()))
    try:
        await server.serve(sockets=None if listener is None else [listener])
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
