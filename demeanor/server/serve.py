"""`serve`: a stack behind HTTP, with its keys, bounds, logs and spans; and its next version swapped in while it runs.

In: versions of a stack (serving.py makes them) and Settings. It knows no engine, no layer and no stack file.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from starlette.routing import BaseRoute

from demeanor.core.addresses import shown
from demeanor.core.errors import DemeanorError, UsageError
from demeanor.server import json_logs as logs
from demeanor.server import tracing
from demeanor.server.admission import MAX_BODY_BYTES, Operations, ToolServerState, UpstreamCounts
from demeanor.server.application import app, metrics_of
from demeanor.server.approvals import TIMEOUT_S, Approver
from demeanor.server.assistant import ServedAssistant, traffic_of
from demeanor.server.auth import KeyRing, KeyStore, from_digests
from demeanor.server.labelling import Labelling
from demeanor.server.lifecycle import Current, Life, TimeLimits, Version
from demeanor.server.processes import ProcessPlace, all_metrics, tell_metrics
from demeanor.server.request_context import Observer
from demeanor.store import database
from demeanor.store import keys as stored
from demeanor.store.redis_limits import RedisRequests

log = logging.getLogger("demeanor.server")
LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve: the command line of `serve`, one field per option."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Sequence[str] = ()
    keys: str | None = None
    redis: str | None = None
    labels: str | None = None
    deadline_s: float | None = None
    max_waiting: int | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    header_s: float = TimeLimits.header_s
    body_s: float = TimeLimits.body_s
    idle_s: float = TimeLimits.idle_s
    cors: Sequence[str] = ()
    drain_s: float = 20.0
    approval_s: float = TIMEOUT_S
    json_logs: bool = False
    watch: bool = False
    memory_gib: float | None = None
    cache_gib: float | None = None
    otel: str | None = None
    otel_content: bool = False
    place: ProcessPlace | None = None
    """Which of several processes this is; set by the one that starts them."""


class Versions(Protocol):
    """The stack that is served and its reloads; serving.py makes one."""

    def open(self) -> Version:
        """Read the stack (again) and make it ready to answer. Raises DemeanorError; what was served before is not touched."""
        ...

    def changed(self) -> bool:
        """Whether the stack file, or a file that it names, has changed since it was read."""
        ...

    @property
    def num_slots(self) -> int: ...

    def engine_load(self) -> tuple[int, int]:
        """Answers being written and answers waiting, in all engines."""
        ...

    def cache_pages(self) -> tuple[int, int, int]:
        """Pages of keys and values in all engines: of running answers, kept for later ones, and free."""
        ...

    def placements(self) -> Sequence[Mapping[str, str]]:
        """How the engines decode: device, and formats of weights, products and cache."""
        ...

    def tool_servers(self) -> Sequence[ToolServerState]:
        """The MCP servers of what is served."""
        ...

    def abandoned_calls(self) -> int:
        """Calls of tools that block beyond their time."""
        ...

    def limits_unchecked(self) -> Mapping[str, int]:
        """Turns that were `refused` or `allowed` while the store of limits did not answer."""
        ...

    async def degraded(self) -> str | None:
        """What does not work, although requests are answered without it; None if everything does."""
        ...

    def upstreams(self) -> UpstreamCounts:
        """Tries of upstreams by (name, outcome), and the state of each one's circuit; empty without fallbacks."""
        ...

    async def health(self) -> str | None:
        """Why what is served cannot answer now; None if it can."""
        ...

    def close(self) -> None: ...


def serve(
    versions: Versions,
    settings: Settings,
    pages: Sequence[BaseRoute] = (),
    labels: Labelling | None = None,
) -> int:
    """Serve the API, the chat page, further `pages` and `labels` until Ctrl-C or SIGTERM; running requests are finished first."""
    given = checked(settings)
    if settings.place is None:
        refuse_taken(settings.host, settings.port)
    plain = from_digests({stored.digest(k): f"key {i + 1}" for i, k in enumerate(given)}) if given else None
    key_database = None if settings.keys is None else database.open_url(settings.keys, root=Path.cwd())
    if (
        key_database is not None
        and not given
        and not any(k.revoked is None for k in stored.stored(key_database))
    ):
        print(
            f"no key of {shown(settings.keys or '')} is in force: nobody can ask yet. Make one: demeanor keys create NAME "
            f"--database {shown(settings.keys or '')}",
            flush=True,
        )
    try:
        requests = None if settings.redis is None else RedisRequests(settings.redis)
        _serve(
            versions,
            settings,
            plain if key_database is None else KeyRing(key_database, plain, requests),
            pages,
            labels,
        )
    finally:
        versions.close()
        if key_database is not None:
            key_database.close()
    return 0


def refuse_taken(host: str, port: int) -> None:
    """Raise UsageError if an address cannot be listened on, before weights are loaded."""
    if not port:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            why = (
                "something listens there already. Stop it, or take another port: --port 0 takes any free one"
            )
        else:
            why = f"it cannot be listened on ({error.strerror}). Give an address of this machine and a port that you may use"
        raise UsageError(f"{host} port {port}: {why}.") from None


def checked(settings: Settings) -> list[str]:
    """The plain keys that count. Raises UsageError for settings that would open the server to anybody, or that cannot work."""
    given = [*settings.api_keys, *(k for k in os.environ.get("DEMEANOR_API_KEYS", "").split(",") if k)]
    if settings.host not in LOCAL and not given and settings.keys is None:
        raise UsageError(
            f"--host {settings.host}: anybody who reaches this machine could use it. Give --keys DATABASE or --api-key KEY "
            "(or set DEMEANOR_API_KEYS)."
        )
    for origin in settings.cors:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UsageError(
                f"--cors: got '{origin}', wanted an origin as browsers send it, such as https://desk.example, or '*'"
            )
        if origin == "*" and not given and settings.keys is None:
            raise UsageError(
                "--cors '*': every page that is open on this machine could use it. Give --keys DATABASE or --api-key KEY."
            )
    if settings.redis is not None and settings.keys is None:
        raise UsageError("--redis: counts the requests of --keys DATABASE, and there is none; leave it out")
    if settings.otel_content and settings.otel is None:
        raise UsageError(
            "--otel-content: is for --otel ENDPOINT (or OTEL_EXPORTER_OTLP_ENDPOINT); without it there are no spans"
        )
    return given


SWITCH_S = (
    0.001  # threads let go of the interpreter this often, so work on long texts delays the event loop little
)


def _serve(
    versions: Versions,
    settings: Settings,
    keys: KeyStore | KeyRing | None,
    pages: Sequence[BaseRoute] = (),
    labels: Labelling | None = None,
) -> None:
    sys.setswitchinterval(SWITCH_S)
    life, current, place = Life(), Current(versions.open()), settings.place
    assistant = cast(ServedAssistant, current)
    observers, flush = _observers(settings, assistant.name)
    operations = _operations(versions, settings, keys, life, observers)
    draining: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        before = current.stack_key
        try:
            opened = await asyncio.to_thread(versions.open)
        except DemeanorError as error:
            log.error("reload: nothing is changed. %s", error)
            return
        draining.add(task := current.swap(opened))
        begin(opened.assistant)
        task.add_done_callback(draining.discard)
        log.warning("reload: stack %s is served now instead of %s", opened.assistant.stack_key, before)

    def started(port: int) -> None:
        begin(assistant)
        url = f"http://{settings.host}:{port}"
        banner = (
            f"{assistant.name}: {offered(assistant, with_keys=keys is not None)} of stack {assistant.stack_key}\n"
            f"  chat page  {url}/\n  API        {url}/v1   (model: {assistant.name})"
            + (f"\n  tour       {url}/tour" if any(getattr(p, "path", "") == "/tour" for p in pages) else "")
            + (
                f"\n  labelling  {url}/label  (open it by a link of `demeanor label invite --page {url}`)"
                if labels
                else ""
            )
        )
        if place is None:
            print(banner, flush=True)
        else:
            place.started(banner)

    served = app(
        assistant,
        keys=keys,
        hosts=(settings.host,),
        operations=operations,
        pages=pages,
        approver=Approver(timeout_s=settings.approval_s),
        labels=labels,
    )
    try:
        life.run(
            served,
            host=settings.host,
            port=settings.port,
            drain_s=settings.drain_s,
            log_config=_logging(settings),
            reload=reload,
            changed=versions.changed if settings.watch else None,
            started=started,
            limits=TimeLimits(settings.header_s, settings.body_s, settings.idle_s),
            listener=None if place is None else place.listener,
            beside=None if place is None else partial(tell_metrics, place, metrics_of(served).text),
        )
    finally:
        flush()


def _operations(
    versions: Versions,
    settings: Settings,
    keys: KeyStore | KeyRing | None,
    life: Life,
    observers: tuple[Observer, ...],
) -> Operations:
    """What the server does under load, and what it tells operators."""

    async def healthy() -> str | None:
        of_keys = [keys.database] if isinstance(keys, KeyRing) else []
        return await versions.health() or await database.locked(of_keys)

    async def degraded() -> str | None:
        counted = keys.requests if isinstance(keys, KeyRing) else None
        return await versions.degraded() or (await counted.away() if counted else None)

    return Operations(
        slots=versions.num_slots,
        max_waiting=settings.max_waiting,
        deadline_s=settings.deadline_s,
        body_s=settings.body_s,
        max_body_bytes=settings.max_body_bytes,
        cors=tuple(settings.cors),
        ready=life.ready,
        observers=observers,
        keep_contents=settings.otel is not None and settings.otel_content,
        engine_load=versions.engine_load,
        cache_pages=versions.cache_pages,
        placements=versions.placements,
        health=healthy,
        abandoned_calls=versions.abandoned_calls,
        tool_servers=versions.tool_servers,
        limits_unchecked=versions.limits_unchecked,
        degraded=degraded,
        all_metrics=None if settings.place is None else all_metrics(settings.place),
        upstreams=versions.upstreams,
    )


def begin(assistant: ServedAssistant) -> None:
    """Start what runs beside the answers: jobs that an earlier process left, and the workers."""
    if (traffic := traffic_of(assistant)) is not None:
        traffic.begin()


def offered(assistant: ServedAssistant, *, with_keys: bool) -> str:
    """Which variants can be asked for, for the line that `serve` prints."""
    if not with_keys:
        return f"all variants ({len(assistant.models())} are listed; without keys every one is answered)"
    more = [model_id for model_id in assistant.published() if model_id != assistant.name]
    if more:
        return f"the whole stack and the published variants {', '.join(more)}"
    return "the whole stack alone (`serve: publish`, or a key's own models, would offer variants)"


# ---- who is told ----


def _observers(settings: Settings, service: str) -> tuple[tuple[Observer, ...], Callable[[], None]]:
    """Who is told of every finished request, and what sends the last spans. Raises DemeanorError if spans cannot be sent."""
    told: tuple[Observer, ...] = (logs.to(sys.stderr),) if settings.json_logs else ()
    if settings.otel is None:
        return told, lambda: None
    tracer, flush = tracing.exported(settings.otel, service)
    return (*told, tracing.spans(tracer)), flush


def _logging(settings: Settings) -> dict[str, Any]:
    """Warnings and errors to stderr, as text or as JSON lines."""
    form: dict[str, Any] = {"()": logs.Lines if settings.json_logs else logs.TextLines}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": form},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    }
