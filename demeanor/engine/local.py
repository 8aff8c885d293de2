"""The local engine: one thread that runs the decode loop for requests from event loops and other threads.

In: requests (tokens with decoding settings). Out: pieces of the answers, or hidden states of a text. Engines
of one process take turns, one decoding step each. Also here: loaded weights under a memory budget. Knows
nothing of templates, layers or HTTP.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from demeanor.core import hardware
from demeanor.core.errors import ContextError, DecodingError, EngineError
from demeanor.core.types import Decoding
from demeanor.engine.cache_budget import CacheBudget
from demeanor.engine.forward import Rows, forward_of
from demeanor.engine.placement import DecodingPlace, slots_that_fit
from demeanor.engine.prefixes import CacheUse, Prefixes
from demeanor.engine.scheduler import READ_PER_STEP, Batch, Delivery, Piece, Request, SequenceState
from demeanor.model.pages import PAGE

if TYPE_CHECKING:
    from demeanor.engine.structured import Grammars, Guide
    from demeanor.model.hf import ForeignModel
    from demeanor.model.llama import Llama
    from demeanor.model.native import Compute
    from demeanor.model.pages import CacheFormat
    from demeanor.text.tokenizer import Tokenizer


class FairLock:
    """A lock that threads get in order of arrival.

    threading.Lock is not fair: a loop that releases it and takes it again at once can starve the other
    threads.
    """

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
        turn.acquire()  # released by the thread before this one, which leaves the lock taken

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


class Outbox(Protocol):
    """Delivers all results of one step at once; raises RuntimeError if the receiving loop is closed."""

    def post(self, deliveries: list[tuple[Any, Delivery]]) -> None: ...


class Recipient(NamedTuple):
    """Where the pieces of one request go: an outbox and a key that the outbox understands."""

    outbox: Outbox
    key: Any


@dataclass(frozen=True)
class LoopOutbox:
    """An event loop; a key is an asyncio.Queue of that loop."""

    loop: asyncio.AbstractEventLoop

    def post(self, deliveries: list[tuple[asyncio.Queue[Delivery], Delivery]]) -> None:
        self.loop.call_soon_threadsafe(_put_all, deliveries)


@dataclass(frozen=True, eq=False)
class ThreadOutbox:
    """A thread that waits on `inbox`; a key is the index of a request."""

    inbox: queue.SimpleQueue[list[tuple[int, Delivery]]]

    def post(self, deliveries: list[tuple[int, Delivery]]) -> None:
        self.inbox.put(deliveries)


def deliver(deliveries: Iterable[tuple[Recipient, Delivery]]) -> list[Outbox]:
    """Post each outbox its deliveries, in order and all at once; return the outboxes that are closed."""
    by_outbox: defaultdict[Outbox, list[tuple[Any, Delivery]]] = defaultdict(list)
    for recipient, delivery in deliveries:
        by_outbox[recipient.outbox].append((recipient.key, delivery))
    closed = []
    for outbox, posted in by_outbox.items():
        try:
            outbox.post(posted)
        except Exception:  # RuntimeError of a closed event loop; whatever it is, nobody reads there any more
            closed.append(outbox)
    return closed


def _put_all(deliveries: list[tuple[asyncio.Queue[Delivery], Delivery]]) -> None:
    for inbox, delivery in deliveries:
        inbox.put_nowait(delivery)


__all__ = ["LocalEngine", "Piece", "Request"]

_TURN = FairLock()  # several engines (stages) are served from one process: one of them computes at a time
WAIT_S = 0.02  # between two looks whether there is memory for a text
RETRY_S = 1.0  # how often a broken engine is tried again
_DECODED = 1 << 16  # pairs of neighbouring tokens whose text is remembered


class LocalEngine:
    """Continuous batching over `num_slots` sequences of up to `max_context` tokens (None: the model's).

    `budget` bounds the memory for keys and values, together with other engines; None: with all of this process.
    """

    def __init__(
        self,
        model: Llama | ForeignModel,
        tokenizer: Tokenizer,
        *,
        num_slots: int = 32,
        max_context: int | None = None,
        budget: CacheBudget | None = None,
        compute: Compute = "fp32",
        cache_format: CacheFormat = "fp32",
    ) -> None:
        longest: int = model.config.max_position_embeddings
        self.max_context = min(max_context or longest, longest)
        num_slots = self.num_slots = slots_that_fit(model, num_slots, self.max_context, cache_format)
        self._decode = lru_cache(_DECODED)(tokenizer.decode)
        slots = num_slots + 1  # one is for `hidden`
        self._forward = forward_of(model, slots, self.max_context, budget, compute, cache_format)
        self._tokenizer = tokenizer
        self._grammars: Grammars | None = None
        self._opening = threading.Lock()
        self._batch = Batch(self._forward, num_slots)  # used by the engine's own thread only
        self._hidden_lock = FairLock()  # the slot of `hidden` holds one text at a time
        self._changed = threading.Condition()  # guards the five below
        self._recipients: dict[SequenceState, Recipient] = {}  # of the requests that are not finished
        self._new: list[SequenceState] = []
        self._dropped: list[SequenceState] = []
        self._closed = False
        self._failure: BaseException | None = None  # of the last step, if nothing has worked since
        self._thread = threading.Thread(target=self._run, name="demeanor-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread inside torch must not outlive the interpreter

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield the answer piece by piece; closing or cancelling the iterator frees the slot within one step.

        Raises EngineError at once if the request is invalid (ContextError if its prompt is too long), and
        while iterating if the engine is closed or fails.
        """
        return self._pieces(request, self._limit(request))

    def hidden(self, tokens: Many[int]) -> Tensor:
        """Return the hidden states of a text after the final norm, hidden_TD; runs between two decoding
        steps.

        Raises EngineError as `stream` does.
        """
        self._limit(Request(tuple(tokens), Decoding(max_tokens=1)))
        parts = []
        with self._hidden_lock, self._lent(len(tokens)) as prefixes:
            for start in range(0, len(tokens), READ_PER_STEP):
                rows = Rows(read=list(range(len(tokens[start : start + READ_PER_STEP]))))
                rows.add(tuple(tokens[start : start + READ_PER_STEP]), self.num_slots, start)
                with _TURN, torch.inference_mode():
                    if self._batch.prefixes is not prefixes:
                        raise _broken(self._failure or EngineError("it started again while a text was read"))
                    prefixes.reserve(self.num_slots, start + len(rows.tokens))
                    parts.append(self._forward.hidden(rows).cpu())
        return torch.cat(parts)

    @contextmanager
    def _lent(self, tokens: int) -> Iterator[Prefixes]:
        """Hold memory for a text in the slot of `hidden`; waits until there is some. Raises EngineError if the engine is closed meanwhile."""
        while True:
            with _TURN:
                prefixes = self._batch.prefixes
                if prefixes.take(self.num_slots, tokens):
                    break
            try:
                if self._closed:  # what ran at its end keeps its pages
                    raise EngineError("the engine is closed")
                time.sleep(WAIT_S)
            except BaseException:
                prefixes.give_up()
                raise
        try:
            yield prefixes
        finally:
            with _TURN:
                prefixes.release(self.num_slots, keep=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, and of a cache that no CacheBudget bounds; weights shared between engines count in each of them."""
        return self._forward.num_bytes

    @property
    def placement(self) -> DecodingPlace:
        """The device, and the formats of weights, products and cache."""
        return self._forward.placement

    @property
    def cache_use(self) -> CacheUse:
        """What the memory for keys and values is used for."""
        return self._batch.cache_use

    @property
    def exact(self) -> bool:
        """True if tokens read one by one and many at a time give the same bits."""
        return self._forward.exact

    @property
    def load(self) -> tuple[int, int]:
        """Number of running requests and of requests that wait for a slot."""
        return self._batch.load

    def health(self) -> str | None:
        """Return why no request can be answered now; None if the engine works."""
        if self._closed or not self._thread.is_alive():
            return "the engine is closed"
        return None if self._failure is None else str(_broken(self._failure))

    async def _pieces(self, request: Request, limit: int) -> AsyncGenerator[Piece, None]:
        inbox: asyncio.Queue[Delivery] = asyncio.Queue()
        guide = None
        if request.decoding.form is not None:
            # Compiling a large schema takes long, and this event loop serves other requests.
            grammars = self._grammars
            if grammars is None:
                grammars = await asyncio.to_thread(self._opened_grammars)
            guide = await grammars.guide_soon(request.decoding.form)
        sequence = SequenceState(request, limit, self._decode, guide)
        self._submit([sequence], [Recipient(LoopOutbox(asyncio.get_running_loop()), inbox)])
        try:
            finished = False
            while not finished:
                delivery = await inbox.get()
                if isinstance(delivery, EngineError):
                    raise delivery
                finished = delivery.finish is not None
                yield delivery
        finally:
            self._cancel([sequence])

    def generate(self, requests: Many[Request]) -> list[list[Piece]]:
        """Answer all requests at once and wait for them; the pieces equal those of `stream`.

        Raises EngineError, before anything runs, if one of them does not fit.
        """
        sequences = [
            SequenceState(request, self._limit(request), self._decode, self._guide(request))
            for request in requests
        ]
        outbox = ThreadOutbox(queue.SimpleQueue())
        answers: list[list[Piece]] = [[] for _ in sequences]
        self._submit(sequences, [Recipient(outbox, i) for i in range(len(sequences))])
        try:
            left = len(sequences)
            while left:
                for i, delivery in outbox.inbox.get():
                    if isinstance(delivery, EngineError):
                        raise delivery
                    answers[i].append(delivery)
                    left -= delivery.finish is not None
        finally:
            self._cancel(sequences)
        return answers

    def close(self) -> None:
        """Stop within one step and join the thread; unfinished requests get an EngineError. Calling it again
        is allowed."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        with _TURN:
            self._batch.prefixes.close()
        if self._grammars is not None:
            self._grammars.close()
        atexit.unregister(self.close)

    def _limit(self, request: Request) -> int:
        """Return the number of tokens this request may generate: max_tokens, limited by the context."""
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
                "decoding.stop contains an empty string, which would end every answer before it begins"
            )
        limit, capacity = min(decoding.max_tokens, self.max_context - length), self._forward.capacity
        if capacity is not None and -(-(length + limit) // PAGE) > capacity // PAGE:
            raise ContextError(
                f"the prompt's {length} tokens and max_tokens {limit} need more than the {capacity} tokens that the "
                "cache of keys and values holds; shorten the conversation, lower max_tokens, or give the cache more "
                "memory (serve --cache-memory)"
            )
        return limit

    def _guide(self, request: Request) -> Guide | None:
        form = request.decoding.form
        return None if form is None else self._opened_grammars().guide(form)

    def _opened_grammars(self) -> Grammars:
        with self._opening:
            if self._grammars is None:  # llguidance reads the whole tokenizer, so only when needed
                from demeanor.engine.structured import Grammars

                self._grammars = Grammars(self._tokenizer, self._forward.vocab_size)
            return self._grammars

    def _submit(self, sequences: list[SequenceState], recipients: list[Recipient]) -> None:
        with self._changed:
            if self._closed:
                raise EngineError("the engine is closed")
            self._recipients.update(zip(sequences, recipients))
            self._new += sequences
            self._changed.notify()

    def _cancel(self, sequences: list[SequenceState]) -> None:
        with self._changed:
            self._dropped += [s for s in sequences if self._recipients.pop(s, None) is not None]
            self._changed.notify()

    # ---- the engine's own thread ----

    def _run(self) -> None:
        hardware.unbind()
        with torch.inference_mode():
            while self._take():
                try:
                    with _TURN:
                        pieces = self._batch.step() if self._batch.busy else self._probe()
                    self._post(pieces)
                    self._failure = None
                except BaseException as error:  # any failure must reach the requests that it ends
                    self._rebuild(error)
        self._fail(
            list(self._recipients),
            lambda: EngineError("the engine was closed before the answer was complete"),
        )

    def _rebuild(self, error: BaseException) -> None:
        """End the running requests with an error, and start again with an empty cache and those that wait."""
        failed, waiting = self._batch.running, self._batch.waiting
        with _TURN:  # `hidden` may read a text in the pages that are given back now
            self._batch = Batch(self._forward, self.num_slots)
        for sequence in waiting:
            self._batch.add(sequence)
        self._fail(failed, lambda: _broken(error))
        try:
            with _TURN:
                self._probe()
        except BaseException as still:
            self._failure = still

    def _probe(self) -> list[tuple[SequenceState, Delivery]]:
        """Run the forward on one token of an empty slot; raises what makes it fail."""
        prefixes = self._batch.prefixes
        found = prefixes.admit([0], 0, reuse=False)
        if found is None:  # `hidden` or another engine has all memory now
            prefixes.withdraw()
            return []
        try:
            prefixes.reserve(found[0], 1)
            self._forward.run(Rows([0], [found[0]], [0], [0]))
        finally:
            prefixes.release(found[0], keep=False)
        return []

    def _take(self) -> bool:
        """Wait for work, then add new sequences and drop cancelled ones; False once the engine is closed.

        While the engine is broken it waits no longer than RETRY_S, so that it notices when it works again.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._new or self._dropped or self._closed or self._batch.busy,
                None if self._failure is None else RETRY_S,
            )
            new, self._new = self._new, []
            dropped, self._dropped = self._dropped, []
            closed = self._closed
        for sequence in new:
            self._batch.add(sequence)
        if dropped:
            with _TURN:  # `hidden` takes memory in other threads
                for sequence in dropped:
                    self._batch.drop(sequence)
        return not closed

    def _post(self, pieces: list[tuple[SequenceState, Delivery]]) -> None:
        """Deliver the pieces of a step to the requests that are not cancelled."""
        with self._changed:
            deliveries = [
                (self._recipients[sequence], piece)
                for sequence, piece in pieces
                if sequence in self._recipients
            ]
            for sequence, piece in pieces:
                if isinstance(piece, EngineError) or piece.finish is not None:
                    self._recipients.pop(sequence, None)
        closed = deliver(deliveries)
        if closed:
            with self._changed:
                orphans = [sequence for sequence, to in self._recipients.items() if to.outbox in closed]
            self._cancel(orphans)

    def _fail(self, sequences: Iterable[SequenceState], reason: Callable[[], EngineError]) -> None:
        """Deliver an error to the requests of some sequences, if they are not finished."""
        with self._changed:
            found = [self._recipients.pop(s) for s in sequences if s in self._recipients]
        deliver([(recipient, reason()) for recipient in found])


def _broken(failure: BaseException) -> EngineError:
    error = EngineError(f"the decode loop stopped: {type(failure).__name__}: {failure}")
    error.__cause__ = failure
    return error


class Loaded(Protocol):
    """What the cache stores: anything with an engine."""

    @property
    def engine(self) -> LocalEngine: ...


W = TypeVar("W", bound=Loaded)


class WeightsCache(Generic[W]):
    """Weights by stage, least recently used first; `budget_bytes` None is no limit."""

    def __init__(self, load: Callable[[str], W], budget_bytes: int | None = None) -> None:
        self._load, self.budget_bytes = load, budget_bytes
        self._loaded: dict[str, W] = {}
        self._users: Counter[str] = Counter()
        self._lock = threading.RLock()

    def get(self, stage: str) -> W:
        """Return the weights of a stage and load them if needed; others may be unloaded."""
        with self._lock:
            found = self._loaded.pop(stage, None)
            if found is None:
                self._make_room(0)
                found = self._load(stage)
            self._loaded[stage] = found  # last: most recently used
            self._make_room(1)
            return found

    def acquire(self, stage: str) -> W:
        """Return the weights as `get` does, and keep them loaded until `release`."""
        with self._lock:
            self._users[stage] += 1
            try:
                return self.get(stage)
            except BaseException:
                self._users[stage] -= 1
                raise

    def release(self, stage: str) -> None:
        """End one use that `acquire` began."""
        with self._lock:
            self._users[stage] -= 1
            self._make_room(1)

    @property
    def stages(self) -> list[str]:
        """The loaded stages, least recently used first."""
        return list(self._loaded)

    def loaded(self) -> dict[str, W]:
        """Return what is loaded now, by stage."""
        with self._lock:
            return dict(self._loaded)

    def put(self, stage: str, loaded: W) -> None:
        """Store weights that were loaded elsewhere."""
        with self._lock:
            self._loaded[stage] = loaded

    def drop(self, stage: str) -> None:
        """Remove a stage's weights without closing their engine."""
        with self._lock:
            self._loaded.pop(stage, None)

    def close(self) -> None:
        """Close every engine."""
        with self._lock:
            while self._loaded:
                self._loaded.popitem()[1].engine.close()

    def _make_room(self, kept: int) -> None:
        """Close idle engines, oldest first, while the budget is exceeded; the newest `kept` always stay."""
        if self.budget_bytes is None:
            return
        for stage in list(self._loaded)[: len(self._loaded) - kept]:
            if sum(x.engine.num_bytes for x in self._loaded.values()) <= self.budget_bytes:
                return
            if not self._users[stage]:
                self._loaded.pop(stage).engine.close()


class LeasedEngine(Generic[W]):
    """An engine whose weights are loaded when a request comes and kept while it runs."""

    def __init__(self, weights: WeightsCache[W], stage: str) -> None:
        self._weights, self._stage = weights, stage

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield pieces as LocalEngine.stream does; loads the weights first, in a thread, if needed."""
        loaded = await asyncio.to_thread(self._weights.acquire, self._stage)
        try:
            async with aclosing(loaded.engine.stream(request)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._weights.release(self._stage)
