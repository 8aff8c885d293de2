"""Several upstream servers as one `Respond`: fallbacks, a circuit breaker for each, and a budget of retries.

In: a turn. Out: the events of the first upstream that answers, after one `Upstream` event that says which. Once a
part of an answer has been passed on, nothing is asked again. What an upstream says is read by remote.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from demeanor.core.errors import UpstreamError
from demeanor.core.types import Event, Turn, Upstream
from demeanor.engine.remote import LONGEST_WAIT_S, RemoteModel, remote_model, unavailable, wait_before
from demeanor.stack.schema import Breaker, Remote, upstream_name

log = logging.getLogger("demeanor.gateway")
FREE_RETRIES = 10.0
"""Retries that a budget allows before any request has paid for them."""


@dataclass
class Circuit:
    """Whether an upstream may be asked: not after `failures` in a row for `open_s`, nor before the time it named (429)."""

    settings: Breaker
    clock: Callable[[], float]
    failures: int = 0
    opened: float | None = None
    until: float = 0.0
    probing: bool = False

    def enter(self) -> bool:
        """Return whether a request may ask now; an open circuit lets one through after `open_s`, as a probe."""
        if self.clock() < self.until or self.wait_s() > 0 or self.probing:
            return False
        self.probing = self.opened is not None
        return True

    def wait_s(self) -> float:
        """Return the seconds until a request may ask again."""
        now = self.clock()
        opened = 0.0 if self.opened is None else self.opened + self.settings.open_s - now
        return max(0.0, opened, self.until - now)

    @property
    def state(self) -> str:
        if self.opened is None:
            return "closed"
        return "half-open" if self.probing or self.wait_s() <= 0 else "open"

    def succeed(self) -> None:
        self.failures, self.opened, self.probing = 0, None, False

    def fail(self) -> None:
        self.failures += 1
        if (
            self.failures >= self.settings.failures
        ):  # they are counted until a success, so a failed probe opens it again
            self.opened = self.clock()
        self.probing = False

    def busy(self, retry_after_s: float | None) -> None:
        """The upstream answers 429: it is well, and wants to be left alone for a time."""
        self.until = self.clock() + (1.0 if retry_after_s is None else retry_after_s)
        self.probing = False

    def leave(self) -> None:
        """The request ended without a verdict on the upstream."""
        self.probing = False


@dataclass
class RetryBudget:
    """At most `share` retries for each request, on average; None: as many as there are upstreams and rounds."""

    share: float | None
    left: float = FREE_RETRIES

    def deposit(self) -> None:
        self.left = min(FREE_RETRIES, self.left + (self.share or 0.0))

    def withdraw(self) -> bool:
        """Take one retry; False if none is left."""
        if self.share is None:
            return True
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(frozen=True)
class UpstreamServer:
    """One upstream: its name, its server, its share of first tries (None: by order), its circuit."""

    name: str
    model: RemoteModel
    weight: float | None
    circuit: Circuit


@dataclass
class Gateway:
    """A Respond over several upstreams; its state is shared by all requests of a process."""

    members: tuple[UpstreamServer, ...]
    retries: int
    total_s: float
    first_s: float | None
    budget: RetryBudget
    draw: Callable[[], float] = random.random
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Tries so far by (upstream, answered | failed | broke_off | refused | busy | skipped)."""

    async def __call__(self, turn: Turn) -> AsyncGenerator[Event, None]:
        """Answer a turn from the first upstream that can; each one that fails before its first event is followed by
        the next at once, and a whole round by another one after a pause, up to `retries` times.

        A request that is wrong in itself (400) is not asked elsewhere. While iterating raises UpstreamError: the last
        failure, with its own status.
        """
        end = time.monotonic() + self.total_s
        order, call = self.ordered(), _Tries()
        self.budget.deposit()
        for attempt in range(self.retries + 1):
            for member in order:
                if member.name in call.given_up:
                    continue
                if not member.circuit.enter():
                    self._count(member, "skipped")
                    call.skipped[member.name] = None
                    continue
                if call.tried and not self.budget.withdraw():
                    member.circuit.leave()
                    raise self._failed(call, "no retry is left in retry_budget")
                started = False
                async with aclosing(self._asked(member, turn, end, call)) as events:
                    async for event in events:
                        if not started:
                            started = True
                            yield Upstream(member.name, tuple(call.tried), call.not_asked())
                        yield event
                if started:
                    return
                if time.monotonic() >= end:
                    raise self._failed(call, "the time is up (total_s)")
            wait_s = self._pause_s(order, call, attempt)
            if (
                attempt == self.retries
                or wait_s is None
                or wait_s > min(LONGEST_WAIT_S, end - time.monotonic())
            ):
                break
            await asyncio.sleep(wait_s)
        raise self._failed(call)

    async def _asked(
        self, member: UpstreamServer, turn: Turn, end: float, call: _Tries
    ) -> AsyncGenerator[Event, None]:
        """One try: its events, or none and a note in `call`. Raises UpstreamError if nothing else may be tried."""
        started = judged = False
        try:
            async with aclosing(member.model.attempt(turn, end, self.first_s)) as events:
                async for event in events:
                    started = True
                    yield event
            member.circuit.succeed()
            judged = True
            self._count(member, "answered")
        except UpstreamError as error:
            judged = True
            self._judge(member, error)
            self._count(member, _outcome(error, started))
            if started or error.status == 400:
                raise
            call.note(member.name, error)
            log.warning("upstream %s failed: %s", member.name, " ".join(str(error).split()))
        finally:
            if not judged:  # the client left
                member.circuit.leave()

    def ordered(self) -> list[UpstreamServer]:
        """Return the upstreams in the order of this request: that of the file, or drawn by weight without replacement."""
        rest, order = list(self.members), list[UpstreamServer]()
        if rest[0].weight is None:
            return rest
        while rest:
            point = self.draw() * sum(member.weight or 0.0 for member in rest)
            for member in rest:
                point -= member.weight or 0.0
                if point < 0:
                    break
            rest.remove(member)
            order.append(member)
        return order

    def _judge(self, member: UpstreamServer, error: UpstreamError) -> None:
        if error.status == 400:
            member.circuit.succeed()
        elif error.status == 429 and error.again:
            member.circuit.busy(error.retry_after_s)
        else:
            member.circuit.fail()

    def _count(self, member: UpstreamServer, outcome: str) -> None:
        self.counts[member.name, outcome] += 1

    def _pause_s(self, order: Sequence[UpstreamServer], call: _Tries, attempt: int) -> float | None:
        """How long to wait before another round; None if no upstream is worth it: open circuits are not waited for."""
        left = [m for m in order if m.name not in call.given_up and m.circuit.opened is None]
        if not left:
            return None
        return max(wait_before(attempt + 1, None), min(m.circuit.wait_s() for m in left))

    def _failed(self, call: _Tries, why: str = "") -> UpstreamError:
        """The error of a request that no upstream answered: the last failure's own, told with all the others."""
        wait_s = min(member.circuit.wait_s() for member in self.members)
        if call.last is None:
            asked = all(m.circuit.opened is None for m in self.members)
            busy = UpstreamError(
                "every upstream asked to be left alone (429)",
                status=429,
                public="The servers behind this model are busy.",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )
            return busy if asked else unavailable("every upstream is left alone after failures", wait_s)
        error = call.last
        told = "; ".join(f"{name}: {text}" for name, text in call.texts)
        error.args = (f"no upstream answered{f' ({why})' if why else ''}: {told}",)
        if error.status in (429, 503) and wait_s > 0:
            error.retry_after_s = wait_s
        return error

    async def health(self) -> str | None:
        """Return why no upstream can answer, or None if one can."""
        told = await asyncio.gather(*(member.model.health() for member in self.members))
        if None in told:
            return None
        return "; ".join(f"{member.name}: {why}" for member, why in zip(self.members, told, strict=True))

    def circuits(self) -> dict[str, str]:
        """Return the state of each upstream's circuit: closed, open or half-open."""
        return {member.name: member.circuit.state for member in self.members}


@dataclass
class _Tries:
    """What one request has tried: (upstream, status) in order, and who need not be asked again."""

    tried: list[tuple[str, int]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    given_up: set[str] = field(default_factory=set)
    skipped: dict[str, None] = field(default_factory=dict)
    last: UpstreamError | None = None

    def not_asked(self) -> tuple[str, ...]:
        asked = {name for name, _ in self.tried}
        return tuple(name for name in self.skipped if name not in asked)

    def note(self, name: str, error: UpstreamError) -> None:
        self.tried.append((name, error.status))
        self.texts.append((name, str(error)))
        self.last = error
        if not error.again:
            self.given_up.add(name)


def _outcome(error: UpstreamError, started: bool) -> str:
    if started:
        return "broke_off"
    return "refused" if error.status == 400 else "busy" if error.status == 429 else "failed"


def model_of(base: Remote, clock: Callable[[], float] = time.monotonic) -> RemoteModel | Gateway:
    """Return the model of a remote base, with its fallbacks; raises UsageError if an API key is not set."""
    if base.fallbacks is None:
        return remote_model(base)
    models = [
        remote_model(base),
        *(remote_model(base, x, f"weights.base.fallbacks[{i}]") for i, x in enumerate(base.fallbacks)),
    ]
    members = tuple(
        UpstreamServer(upstream_name(told), model, told.weight, Circuit(base.breaker or Breaker(), clock))
        for told, model in zip(base.upstreams, models, strict=True)
    )
    total_s = models[0].total_s
    return Gateway(members, base.retries, total_s, base.first_s, RetryBudget(base.retry_budget))
