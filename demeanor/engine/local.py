"""A lock that serves in order of arrival: engines that share a machine take turns, one decoding step each.

threading.Lock is not fair: a loop that releases and takes it again at once can keep everybody else out.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from demeanor.core import hardware
from demeanor.core.errors import ContextError, DecodingError, EngineError
from demeanor.core.types import Decoding
from demeanor.engine.forward import Rows, forward_of
from demeanor.engine.scheduler import READ_PER_STEP, Batch, Piece, Request, Sequence

if TYPE_CHECKING:
    from demeanor.engine.structured import Forms, Guide
    from demeanor.model.hf import ForeignModel
    from demeanor.model.llama import Llama
    from demeanor.text.tokenizer import Tokenizer


class FairLock:
    """`with turnstile:` lets one thread in at a time, first come, first served."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._taken = False

    def __enter__(self) -> None:
        with self._mutex:
            if not self._taken:
                self._taken = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        turn.acquire()  # released by the thread before us, which leaves the turnstile taken for us

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


Delivery: TypeAlias = Piece | EngineError


class Outbox(Protocol):
    """Takes all letters of a step at once, each with its reader; RuntimeError if nobody is there any more."""

    def post(self, letters: list[tuple[Any, Delivery]]) -> None: ...


class Recipient(NamedTuple):
    """Where the pieces of one request go."""

    mailbox: Outbox
    reader: Any


@dataclass(frozen=True)
class LoopOutbox:
    """An event loop; a reader is an asyncio.Queue of that loop."""

    loop: asyncio.AbstractEventLoop

    def post(self, letters: list[tuple[asyncio.Queue[Delivery], Delivery]]) -> None:
        self.loop.call_soon_threadsafe(_hand_out, letters)


@dataclass(frozen=True, eq=False)
class ThreadOutbox:
    """A thread that waits on `inbox`; a reader is the number of a request."""

    inbox: queue.SimpleQueue[list[tuple[int, Delivery]]]

    def post(self, letters: list[tuple[int, Delivery]]) -> None:
        self.inbox.put(letters)


def deliver(letters: Iterable[tuple[Recipient, Delivery]]) -> list[Outbox]:
    """Post each mailbox its letters, in order and all at once; return the mailboxes where nobody is any more."""
    bundles: defaultdict[Outbox, list[tuple[Any, Delivery]]] = defaultdict(list)
    for address, letter in letters:
        bundles[address.mailbox].append((address.reader, letter))
    gone = []
    for mailbox, bundle in bundles.items():
        try:
            mailbox.post(bundle)
        except RuntimeError:  # what a closed event loop says
            gone.append(mailbox)
    return gone


def _hand_out(letters: list[tuple[asyncio.Queue[Delivery], Delivery]]) -> None:
    for reader, letter in letters:
        reader.put_nowait(letter)


__all__ = ["LocalEngine", "Piece", "Request"]

_TURN = FairLock()  # several engines (stages) are served from one process: one of them computes at a time
_DECODED = 1 << 16  # pairs of neighbouring tokens whose text is remembered


class LocalEngine:
    """Continuous batching over `num_slots` sequences of at most `max_context` tokens (None: the model's own limit)."""

    def __init__(
        self,
        model: Llama | ForeignModel,
        tokenizer: Tokenizer,
        *,
        num_slots: int = 32,
        max_context: int | None = None,
    ) -> None:
        longest: int = model.config.max_position_embeddings
        self.max_context, self.num_slots = min(max_context or longest, longest), num_slots
        self._decode = lru_cache(_DECODED)(tokenizer.decode)
        self._forward = forward_of(model, num_slots + 1, self.max_context)  # the last slot is for `hidden`
        self._tokenizer, self._forms, self._compiling = (
            tokenizer,
            cast("Forms | None", None),
            threading.Lock(),
        )
        self._batch = Batch(self._forward, num_slots)  # touched by the engine's own thread only
        self._reading = FairLock()  # one text at a time is in the slot of `hidden`
        self._changed = threading.Condition()  # guards the five below
        self._addresses: dict[Sequence, Recipient] = {}  # who still waits for an answer, and where
        self._new: list[Sequence] = []
        self._dropped: list[Sequence] = []
        self._closed = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="demeanor-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread inside torch must not outlive the interpreter

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Answer piece by piece; closing or cancelling the iterator frees the slot within one step.

        Raises EngineError at once if the request makes no sense (ContextError if its prompt is too long), and while
        iterating if the engine is closed or fails.
        """
        return self._pieces(request, self._limit(request))

    def hidden(self, tokens: Many[int]) -> Tensor:
        """Hidden states of a text's tokens after the final norm, hidden_TD; waits for its turn between two decoding steps.

        Raises EngineError as `stream` does.
        """
        self._limit(Request(tuple(tokens), Decoding(max_tokens=1)))
        parts = []
        with self._reading:
            for start in range(0, len(tokens), READ_PER_STEP):
                rows = Rows(read=list(range(len(tokens[start : start + READ_PER_STEP]))))
                rows.add(tuple(tokens[start : start + READ_PER_STEP]), self.num_slots, start)
                with _TURN, torch.inference_mode():
                    parts.append(self._forward.hidden(rows))
        return torch.cat(parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights and cache; what engines of one trunk share is counted in each."""
        return self._forward.num_bytes

    @property
    def exact(self) -> bool:
        """Does it say the same to the last bit whether tokens are read one by one or many at a time?"""
        return self._forward.exact

    @property
    def load(self) -> tuple[int, int]:
        """How many requests run and how many wait for a slot (a moment's picture)."""
        return self._batch.load

    async def _pieces(self, request: Request, limit: int) -> AsyncGenerator[Piece, None]:
        reader: asyncio.Queue[Delivery] = asyncio.Queue()
        bound = (
            request.decoding.form is not None
        )  # compiling a large schema takes a while, and others wait for this loop
        guide = await asyncio.to_thread(self._guide, request) if bound else None
        sequence = Sequence(request, limit, self._decode, guide)
        self._submit([sequence], [Recipient(LoopOutbox(asyncio.get_running_loop()), reader)])
        try:
            finished = False
            while not finished:
                letter = await reader.get()
                if isinstance(letter, EngineError):
                    raise letter
                finished = letter.finish is not None
                yield letter
        finally:
            self._cancel([sequence])

    def generate(self, requests: Many[Request]) -> list[list[Piece]]:
        """Answer all requests and wait; the same as `stream` for each of them at once.

        Raises EngineError, before anything runs, if one of them does not fit.
        """
        sequences = [
            Sequence(request, self._limit(request), self._decode, self._guide(request))
            for request in requests
        ]
        mailbox = ThreadOutbox(queue.SimpleQueue())
        answers: list[list[Piece]] = [[] for _ in sequences]
        self._submit(sequences, [Recipient(mailbox, i) for i in range(len(sequences))])
        try:
            left = len(sequences)
            while left:
                for i, letter in mailbox.inbox.get():
                    if isinstance(letter, EngineError):
                        raise letter
                    answers[i].append(letter)
                    left -= letter.finish is not None
        finally:
            self._cancel(sequences)
        return answers

    def close(self) -> None:
        """Stop within one step and free the thread; whoever still waits for an answer gets an EngineError. Twice is once."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        atexit.unregister(self.close)

    def _limit(self, request: Request) -> int:
        """Tokens this request may say: max_tokens, clipped by the context."""
        length, decoding = len(request.tokens), request.decoding
        if length == 0:
            raise EngineError("the prompt has no tokens; an engine continues a prompt of at least 1")
        if length >= self.max_context:
            raise ContextError(
                f"the prompt has {length} tokens, which leaves no room in a context of {self.max_context}; "
                "shorten the conversation"
            )
        if decoding.max_tokens < (1 if request.prompt_logprobs is None else 0):
            raise DecodingError(
                f"max_tokens is {decoding.max_tokens}; an answer has at least 1", "max_tokens"
            )
        wrong = [token for token, _ in decoding.logit_bias if not 0 <= token < self._forward.vocab_size]
        if wrong:
            raise DecodingError(
                f"logit_bias: {wrong[0]} is not a token; wanted ids of 0 to {self._forward.vocab_size - 1}",
                "logit_bias",
            )
        if "" in decoding.stop:
            raise EngineError(
                "decoding.stop holds an empty string, which would end every answer before it begins"
            )
        return min(decoding.max_tokens, self.max_context - length)

    def _guide(self, request: Request) -> Guide | None:
        form = request.decoding.form
        if form is None:
            return None
        with self._compiling:
            if self._forms is None:  # llguidance reads the tokenizer once, when first asked
                from demeanor.engine.structured import Forms

                self._forms = Forms(self._tokenizer, self._forward.vocab_size)
            return self._forms.guide(form)

    def _submit(self, sequences: list[Sequence], addresses: list[Recipient]) -> None:
        with self._changed:
            if self._failure is not None:
                raise _broken(self._failure)
            if self._closed:
                raise EngineError("the engine is closed")
            self._addresses.update(zip(sequences, addresses))
            self._new += sequences
            self._changed.notify()

    def _cancel(self, sequences: list[Sequence]) -> None:
        with self._changed:
            self._dropped += [s for s in sequences if self._addresses.pop(s, None) is not None]
            self._changed.notify()

    # ---- the engine's own thread ----

    def _run(self) -> None:
        hardware.unbind()
        try:
            with torch.inference_mode():
                while self._take():
                    with _TURN:
                        pieces = self._batch.step()
                    self._post(pieces)
        except BaseException as error:  # whatever it was, nobody may wait for ever
            with self._changed:
                self._failure = failure = error
            self._end(lambda: _broken(failure))
        else:
            self._end(lambda: EngineError("the engine was closed before the answer was complete"))

    def _take(self) -> bool:
        """Wait for work, then take in what is new and put away what was cancelled; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._new or self._dropped or self._closed or self._batch.busy)
            new, self._new = self._new, []
            dropped, self._dropped = self._dropped, []
            closed = self._closed
        for sequence in new:
            self._batch.add(sequence)
        for sequence in dropped:
            self._batch.drop(sequence)
        return not closed

    def _post(self, pieces: list[tuple[Sequence, Piece]]) -> None:
        """Send this step's pieces to those who still wait for them."""
        with self._changed:
            letters = [
                (self._addresses[sequence], piece)
                for sequence, piece in pieces
                if sequence in self._addresses
            ]
            for sequence, piece in pieces:
                if piece.finish is not None:
                    self._addresses.pop(sequence, None)
        gone = deliver(letters)
        if gone:
            with self._changed:
                orphans = [
                    sequence for sequence, address in self._addresses.items() if address.mailbox in gone
                ]
            self._cancel(orphans)

    def _end(self, reason: Callable[[], EngineError]) -> None:
        """Tell everyone who still waits why there will be no more."""
        with self._changed:
            left = list(self._addresses.values())
            self._addresses.clear()
        deliver([(address, reason()) for address in left])


def _broken(failure: BaseException) -> EngineError:
    error = EngineError(f"the decode loop stopped: {type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error
