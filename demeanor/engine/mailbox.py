"""Letters from the engine's thread to those who wait: one posting per step and mailbox, however many pieces a step made.

A mailbox is an event loop (its readers are asyncio queues) or a waiting thread (its readers are numbered requests).
"""

from __future__ import annotations

import asyncio
import queue
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

from demeanor.engine.request import Piece
from demeanor.errors import EngineError

Letter: TypeAlias = Piece | EngineError


class Mailbox(Protocol):
    """Takes all letters of a step at once, each with its reader; RuntimeError if nobody is there any more."""

    def post(self, letters: list[tuple[Any, Letter]]) -> None: ...


class Address(NamedTuple):
    """Where the pieces of one request go."""

    mailbox: Mailbox
    reader: Any


@dataclass(frozen=True)
class LoopMailbox:
    """An event loop; a reader is an asyncio.Queue of that loop."""

    loop: asyncio.AbstractEventLoop

    def post(self, letters: list[tuple[asyncio.Queue[Letter], Letter]]) -> None:
        self.loop.call_soon_threadsafe(_hand_out, letters)


@dataclass(frozen=True, eq=False)
class ThreadMailbox:
    """A thread that waits on `inbox`; a reader is the number of a request."""

    inbox: queue.SimpleQueue[list[tuple[int, Letter]]]

    def post(self, letters: list[tuple[int, Letter]]) -> None:
        self.inbox.put(letters)


def deliver(letters: Iterable[tuple[Address, Letter]]) -> list[Mailbox]:
    """Post each mailbox its letters, in order and all at once; return the mailboxes where nobody is any more."""
    bundles: defaultdict[Mailbox, list[tuple[Any, Letter]]] = defaultdict(list)
    for address, letter in letters:
        bundles[address.mailbox].append((address.reader, letter))
    gone = []
    for mailbox, bundle in bundles.items():
        try:
            mailbox.post(bundle)
        except RuntimeError:  # what a closed event loop says
            gone.append(mailbox)
    return gone


def _hand_out(letters: list[tuple[asyncio.Queue[Letter], Letter]]) -> None:
    for reader, letter in letters:
        reader.put_nowait(letter)
