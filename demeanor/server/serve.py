"""`serve`: a stack behind HTTP, with its keys, bounds, logs and spans; and its next version swapped in while it runs.

In: a Stack, the folder of runs, Settings. It only wires: what answers is house.py's, what stands before it server/'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from demeanor.app import ServedStack, StackRuntime
from demeanor.core.errors import DemeanorError
from demeanor.server import logs, tracing
from demeanor.server.admission import Operations
from demeanor.server.app import MAX_BODY_BYTES, app
from demeanor.server.assistant import Assistant
from demeanor.server.auth import KeyRing, KeyStore, from_digests
from demeanor.server.lifecycle import Current, Life, Version
from demeanor.server.request_context import Observer
from demeanor.stack.stack import Stack
from demeanor.store import database
from demeanor.store import keys as stored
from demeanor.train.runs import Runs
from demeanor.world import catalog

log = logging.getLogger("demeanor.server")
LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve: the command line of `serve`, one field per option."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: Sequence[str] = ()
    keys: str | None = None
    deadline_s: float | None = None
    max_waiting: int | None = None
    max_body_bytes: int = MAX_BODY_BYTES
    cors: Sequence[str] = ()
    drain_s: float = 20.0
    json_logs: bool = False
    watch: bool = False
    memory_gib: float | None = None
    otel: str | None = None
    otel_content: bool = False


def serve(load: Callable[[], Stack], runs: Runs, settings: Settings) -> int:
    """Serve the API and the chat page until Ctrl-C or SIGTERM; running requests are finished first. `load` reads the stack (again)."""
    given = checked(settings)
    plain = from_digests({stored.digest(k): f"key {i + 1}" for i, k in enumerate(given)}) if given else None
    ring = None if settings.keys is None else database.open_url(settings.keys, root=Path.cwd())
    if ring is not None and not given and not any(k.revoked is None for k in stored.stored(ring)):
        print(
            f"no key of {settings.keys} is in force: nobody can ask yet. Make one: demeanor keys create NAME --database {settings.keys}",
            flush=True,
        )
    houses = LiveVersions(runs, None if settings.memory_gib is None else int(settings.memory_gib * 2**30))
    try:
        _serve(houses, load, settings, plain if ring is None else KeyRing(ring, plain))
    finally:
        houses.close()
        if ring is not None:
            ring.close()
    return 0


def checked(settings: Settings) -> list[str]:
    """The plain keys that count. Raises DemeanorError for settings that would open the server to anybody, or that cannot work."""
    given = [*settings.api_keys, *(k for k in os.environ.get("DEMEANOR_API_KEYS", "").split(",") if k)]
    if settings.host not in LOCAL and not given and settings.keys is None:
        raise DemeanorError(
            f"--host {settings.host}: anybody who reaches this machine could use it. Give --keys DATABASE or --api-key KEY "
            "(or set DEMEANOR_API_KEYS)."
        )
    for origin in settings.cors:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise DemeanorError(
                f"--cors: got '{origin}', wanted an origin as browsers send it, such as https://desk.example, or '*'"
            )
        if origin == "*" and not given and settings.keys is None:
            raise DemeanorError(
                "--cors '*': every page that is open on this machine could use it. Give --keys DATABASE or --api-key KEY."
            )
    return given


def _serve(
    houses: LiveVersions, load: Callable[[], Stack], settings: Settings, keys: KeyStore | KeyRing | None
) -> None:
    life, stack = Life(), load()
    seen = stamps(stack)
    observers, flush = _observers(settings, stack.spec.name)
    current = Current(houses.open(stack))
    assistant = cast(Assistant, current)
    operations = Operations(
        slots=houses.living[0].num_slots,
        max_waiting=settings.max_waiting,
        deadline_s=settings.deadline_s,
        cors=tuple(settings.cors),
        ready=life.ready,
        observers=observers,
        keep_contents=settings.otel is not None and settings.otel_content,
        engine_load=houses.engine_load,
    )
    draining: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        nonlocal stack, seen
        seen = await asyncio.to_thread(stamps, stack)
        try:
            new = await asyncio.to_thread(load)
            fresh = await asyncio.to_thread(stamps, new)
            opened = await asyncio.to_thread(houses.open, new)
        except DemeanorError as error:
            log.error("reload: nothing is changed. %s", error)
            return
        before, stack, seen = current.stack_key, new, fresh
        draining.add(task := current.swap(opened))
        task.add_done_callback(draining.discard)
        log.warning("reload: stack %s is served now instead of %s", opened.assistant.stack_key, before)

    def started(port: int) -> None:
        url = f"http://{settings.host}:{port}"
        print(
            f"{assistant.name}: {len(assistant.models())} variants of stack {assistant.stack_key}\n"
            f"  chat page  {url}/\n  API        {url}/v1   (model: {assistant.name})",
            flush=True,
        )

    try:
        life.run(
            app(
                assistant,
                keys=keys,
                hosts=(settings.host,),
                max_body_bytes=settings.max_body_bytes,
                operations=operations,
            ),
            host=settings.host,
            port=settings.port,
            drain_s=settings.drain_s,
            log_config=_logging(settings),
            reload=reload,
            changed=(lambda: stamps(stack) != seen) if settings.watch else None,
            started=started,
        )
    finally:
        flush()


# ---- versions of a stack ----


@dataclass
class LiveVersions:
    """The houses that live: the one whose stack is served, and those that end what they began."""

    runs: Runs
    budget_bytes: int | None = None
    living: list[StackRuntime] = field(default_factory=list)

    def open(self, stack: Stack) -> Version:
        """A stack ready to answer; loaded weights are shared. Raises DemeanorError if it cannot be served."""
        house = StackRuntime(stack, self.runs, budget_bytes=self.budget_bytes)
        try:
            if self.living:  # under a budget each version counts, and makes room, for itself
                inherit(house, self.living[-1], weights=self.budget_bytes is None)
            every = len(stack.policies) <= 4 and self.budget_bytes is None
            house.warm(stack.policies if every else [stack.serve])
            served = ServedStack(house, catalog.EXAMPLES if stack.uses_world else ())
            served.respond(
                served.name
            )  # a layer that cannot be built is a mistake now, not at the first request
        except BaseException:
            self.leave(house)
            raise
        self.living.append(house)
        return Version(served, lambda: self.leave(house))

    def leave(self, house: StackRuntime) -> None:
        """Close a house, but not the engines that living ones use."""
        used = {id(w) for other in self.living if other is not house for w in other._weights.held().values()}
        for stage, weights in house._weights.held().items():
            if id(weights) in used:
                house._weights.drop(stage)
        if house in self.living:
            self.living.remove(house)
        house.close()

    def engine_load(self) -> tuple[int, int]:
        """Answers being written and answers waiting, in all engines."""
        loads = {
            id(w): w.engine.load for house in self.living for w in house._weights.held().values()
        }.values()
        return sum(running for running, _ in loads), sum(waiting for _, waiting in loads)

    def close(self) -> None:
        while self.living:
            self.leave(self.living[-1])


def inherit(new: StackRuntime, old: StackRuntime, *, weights: bool = True) -> None:
    """Give a house the loaded `weights` of another that are its own too, and the open accounts of the limits layer."""
    loaded = (
        {old.stack.stage_key(stage): found for stage, found in old._weights.held().items()} if weights else {}
    )
    for stage in ("base", *(s.name for s in new.stack.spec.weights.stages)):
        if (found := loaded.get(new.stack.stage_key(stage))) is not None:
            new._weights.put(stage, found)
    new._shared.update({k: v for k, v in old._shared.items() if isinstance(k, tuple) and k[0] == "limits"})


def stamps(stack: Stack) -> dict[str, tuple[int, int]]:
    """Modification time (ns) and size of the stack file and of every file and folder that it names."""
    named = [
        stack.path,
        *(stack.root / text for text in _texts(stack.spec.model_dump(mode="json")) if 0 < len(text) < 256),
    ]
    found: dict[str, tuple[int, int]] = {}
    for path in named:
        try:
            if path.resolve() in (stack.root.resolve(), *stack.root.resolve().parents):
                continue
            for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
                about = file.stat()
                found[str(file)] = about.st_mtime_ns, about.st_size
        except (OSError, ValueError):
            continue
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for x in inside for text in _texts(x)]


# ---- who is told ----


def _observers(settings: Settings, service: str) -> tuple[tuple[Observer, ...], Callable[[], None]]:
    """Who is told of every finished request, and what sends the last spans. Raises DemeanorError if spans cannot be sent."""
    told: tuple[Observer, ...] = (logs.to(sys.stderr),) if settings.json_logs else ()
    if settings.otel is None:
        if settings.otel_content:
            raise DemeanorError(
                "--otel-content: is for --otel ENDPOINT (or OTEL_EXPORTER_OTLP_ENDPOINT); without it there are no spans"
            )
        return told, lambda: None
    tracer, flush = tracing.exported(settings.otel, service)
    return (*told, tracing.spans(tracer)), flush


def _logging(settings: Settings) -> dict[str, Any]:
    """Warnings and errors to stderr, as text or as JSON lines."""
    form: dict[str, Any] = (
        {"()": logs.Lines} if settings.json_logs else {"format": "%(levelname)s: %(message)s"}
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": form},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}
        },
        "loggers": {
            name: {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
            for name in ("uvicorn", "demeanor")
        },
    }
