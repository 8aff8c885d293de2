"""Several server processes behind one address: a parent that starts, watches, reloads, drains and replaces them.

In: an address, how one process serves, and how many are wanted. Out: the exit code. The parent binds the address and every
process accepts on the same socket, so no connection is lost when one dies. The parent serves nothing and holds no weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeAlias

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from demeanor.core.errors import DemeanorError, UsageError

log = logging.getLogger("demeanor.server")
BACKLOG = 2048
KILL_S = 5.0  # after the time to drain
RESTART_S, SLOWEST_RESTART_S = 0.5, 30.0  # doubled for a process that ends within STEADY_S
STEADY_S = 30.0
ASK_S = 1.0  # how long another process may take to tell its metrics


@dataclass(frozen=True, slots=True)
class ProcessPlace:
    """Which process of how many this is, the socket that all accept on, and the pipe to their parent."""

    number: int
    listener: socket.socket
    parent: Connection
    folder: Path
    """Where each process has a socket that tells its metrics."""
    of: int

    def started(self, banner: str) -> None:
        """Tell the parent that this process accepts connections."""
        self.parent.send(banner)


Run: TypeAlias = Callable[[ProcessPlace], int]


def supervise(run: Run, *, host: str, port: int, processes: int, drain_s: float) -> int:
    """Run processes until Ctrl-C or SIGTERM; `run`, which can be pickled, serves in each and returns its exit code."""
    with tempfile.TemporaryDirectory(prefix="demeanor-") as folder, _listener(host, port) as listener:
        return _Supervisor(run, listener, Path(folder), processes, drain_s).run()


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UsageError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror or error}"
        ) from None


@dataclass(slots=True, eq=False)
class _Child:
    """One process and the parent's end of its pipe."""

    number: int
    process: SpawnProcess
    pipe: Connection
    began: float
    banner: str | None = None


class _Supervisor:
    """The parent's loop."""

    def __init__(
        self, run: Run, listener: socket.socket, folder: Path, processes: int, drain_s: float
    ) -> None:
        self._run, self._listener, self._folder = run, listener, folder
        self._processes, self._drain_s = processes, drain_s
        self._children: dict[int, _Child] = {}
        self._waiting: dict[int, float] = {}  # when a process that ended is started again
        self._delay_s: dict[int, float] = {}
        self._stop_at: float | None = None
        self._signals: list[int] = []

    def run(self) -> int:
        with _signals_to(self._signals) as woken:
            first = self._start(0)
            while first.process.is_alive() and first.banner is None and self._stop_at is None:
                self._turn(woken)
            if self._stop_at is None and first.banner is None:
                return _exit_code(first)
            if first.banner is not None:
                print(f"{first.banner}\n  processes  {self._processes}", flush=True)
            for number in range(1, self._processes if self._stop_at is None else 0):
                self._start(number)
            while self._children or (self._stop_at is None and self._waiting):
                self._turn(woken, restart=True)
            return 0

    def _start(self, number: int) -> _Child:
        ours, theirs = multiprocessing.Pipe()
        place = ProcessPlace(number, self._listener, theirs, self._folder, self._processes)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_serve_in, args=(self._run, place))
        process.start()
        theirs.close()
        self._children[number] = child = _Child(number, process, ours, time.monotonic())
        return child

    def _turn(self, woken: socket.socket, *, restart: bool = False) -> None:
        """Wait for whatever happens next, and do what it calls for."""
        due = [*self._waiting.values(), *([] if self._stop_at is None else [self._stop_at])]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        children = list(self._children.values())
        ready = wait([woken, *(c.process.sentinel for c in children), *(c.pipe for c in children)], timeout_s)
        if woken in ready:
            with contextlib.suppress(BlockingIOError):
                woken.recv(4096)
        while self._signals:
            self._on_signal(self._signals.pop(0))
        for child in children:
            if child.pipe in ready:
                with contextlib.suppress(EOFError, OSError):
                    child.banner = child.pipe.recv()
            if child.process.sentinel in ready:
                self._ended(child, restart=restart)
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            self._stop_at = time.monotonic() + KILL_S
            for child in self._children.values():
                log.error("process %d does not end; it is killed", child.number)
                child.process.kill()
        elif self._stop_at is None:
            for number in [n for n, at in self._waiting.items() if at <= time.monotonic()]:
                del self._waiting[number]
                self._start(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._send(signal.SIGHUP)
        elif self._stop_at is None:
            self._stop_at = time.monotonic() + self._drain_s + KILL_S
            self._waiting.clear()
            self._send(signal.SIGTERM)
        else:  # the second time: at once
            self._send(signal.SIGINT)

    def _send(self, number: signal.Signals) -> None:
        for child in self._children.values():
            if child.process.is_alive() and child.process.pid:
                os.kill(child.process.pid, number)

    def _ended(self, child: _Child, *, restart: bool) -> None:
        child.process.join()
        child.pipe.close()
        del self._children[child.number]
        if self._stop_at is not None or not restart:
            return
        steady = time.monotonic() - child.began > STEADY_S
        delay_s = RESTART_S if steady else self._delay_s.get(child.number, RESTART_S)
        self._delay_s[child.number] = min(2 * delay_s, SLOWEST_RESTART_S)
        self._waiting[child.number] = time.monotonic() + delay_s
        code = child.process.exitcode or 0
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        log.error("process %d (pid %s) ended %s; it is started again", child.number, child.process.pid, how)


@contextlib.contextmanager
def _signals_to(got: list[int]) -> Iterator[socket.socket]:
    """Append signals to a list; the socket becomes readable with each."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {sig: signal.signal(sig, lambda number, frame: got.append(number)) for sig in wanted}
    wakeup = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for sig, handler in before.items():
            signal.signal(sig, handler)
        reading.close()
        writing.close()


def _exit_code(child: _Child) -> int:
    """The exit code of a process that never served; its own words are on stderr."""
    code = child.process.exitcode
    if code is None or code < 0:
        raise DemeanorError(f"a server process ended before it served (signal {-(code or 0)})")
    return code


# ---- in each process ----


def _serve_in(run: Run, place: ProcessPlace) -> None:
    os.setpgid(0, 0)  # Ctrl-C in a terminal is the parent's to pass on
    threading.Thread(target=_end_with, args=(place.parent,), daemon=True).start()
    if place.number:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the first process says what there is to say
    try:
        code = run(place)
    except DemeanorError as error:
        print(f"demeanor: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code)


def _end_with(parent: Connection) -> None:
    """Drain and end when the parent has ended, however it did."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os.kill(os.getpid(), signal.SIGTERM)


async def tell_metrics(place: ProcessPlace, text: Callable[[], bytes]) -> None:
    """Tell this process's metrics to the others, until it is cancelled."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(text())
            await writer.drain()
        writer.close()

    path = _metrics_socket(place, place.number)
    path.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(answer, path) as server:
        await server.serve_forever()


def all_metrics(place: ProcessPlace) -> Callable[[bytes], Awaitable[bytes]]:
    """Return what adds the metrics of the other processes to this one's, each with the label `process`."""

    async def merged(own: bytes) -> bytes:
        others = [n for n in range(place.of) if n != place.number]
        told = await asyncio.gather(*(_ask(_metrics_socket(place, n)) for n in others))
        return labelled({place.number: own, **dict(zip(others, told))})

    return merged


async def _ask(path: Path) -> bytes | None:
    try:
        async with asyncio.timeout(ASK_S):
            reader, writer = await asyncio.open_unix_connection(path)
            found = await reader.read(-1)
            writer.close()
            return found or None
    except (OSError, TimeoutError):
        return None


def labelled(texts: Mapping[int, bytes | None]) -> bytes:
    """Return the metrics of several processes as one text; None: a process that does not answer now."""
    up = Metric("demeanor_process_up", "1: the process tells its metrics.", "gauge")
    families = {up.name: up}
    for number, text in sorted(texts.items()):
        labels = {"process": str(number)}
        up.add_sample(up.name, labels, float(text is not None))
        for family in text_string_to_metric_families((text or b"").decode()):
            found = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                found.add_sample(sample.name, {**sample.labels, **labels}, sample.value)
    return generate_latest(_Families(list(families.values())))


@dataclass(frozen=True)
class _Families:
    """What `generate_latest` reads of a registry."""

    families: list[Any]

    def collect(self) -> list[Any]:
        return self.families


def _metrics_socket(place: ProcessPlace, number: int) -> Path:
    return place.folder / f"{number}.sock"
