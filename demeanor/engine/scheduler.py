"""The decode loop: continuous batching of sequences over the slots of a KV cache, one forward a step.

In: requests (tokens and decoding settings). Out: pieces of their answers. Prompts are read in parts between decoding
steps, and a prefix that another slot holds is copied. Knows nothing of threads, event loops or HTTP.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from demeanor.core.errors import EngineError
from demeanor.core.types import Decoding, FinishReason
from demeanor.engine import sampling
from demeanor.engine.detokenizer import Decode, Detokenizer, scan
from demeanor.engine.forward import Forward, Rows, run_bounds
from demeanor.engine.prefixes import WORTH_COPYING, CacheUse, common_prefix
from demeanor.model.drawn import Drawn
from demeanor.model.draws import Noise
from demeanor.model.native import NativeStep, drawn_logprobs

if TYPE_CHECKING:
    from demeanor.engine.structured import Guide


def draftable(decoding: Decoding) -> bool:
    """True if decoding is greedy and unmodified, so that drafts can be verified."""
    changed = decoding.logit_bias or decoding.presence_penalty or decoding.frequency_penalty
    return decoding.greedy and decoding.form is None and not changed


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue until one of `stop_tokens`, a stop string of `decoding`, or its max_tokens.

    `prompt_logprobs`: also return each prompt token's log-probability with this many alternatives (0 to 20);
    None: do not. Only with it may max_tokens be 0, and then no token is generated. `drafts`: likely answers,
    which are verified many tokens at a time (speculative decoding, Leviathan et al. 2023, greedy case); they
    never change the answer. `recorded`: pieces say from what distribution their token was drawn.
    """

    tokens: tuple[int, ...]
    decoding: Decoding
    stop_tokens: frozenset[int] = frozenset()
    prompt_logprobs: int | None = None
    drafts: tuple[tuple[int, ...], ...] = ()
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One prompt token: its text, its log-probability (nats; None for the first token) and alternatives."""

    token: int
    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token and the text that became certain with it; the last piece of a request has a
    `finish`.

    `text` is "" while an incomplete character or stop string is held back; the stop string itself is never in
    it. `logprob` (nats) is of the unmodified distribution. `top` and `own` (the token's own text, nothing
    held back) are filled if the request asked for top_logprobs. `prompt` is on the first piece if it asked
    for prompt_logprobs. With max_tokens 0 there is one piece, of `token` -1 and without text. `sampled` and `kept`, if
    the request is `recorded`: the log-probability (nats) under the distribution that the token was drawn from, and
    the tokens left in it, ascending (empty: all). `sampled` is None for a token that was not drawn from the model's own
    logits: a greedy one, or after bias, penalties or an output format. `cached` tokens of the prompt were not read,
    because the cache held them.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    finish: FinishReason | None = None
    own: str = ""
    prompt: tuple[PromptToken, ...] = ()
    sampled: float | None = None
    kept: tuple[int, ...] = ()
    cached: int = field(default=0, compare=False)  # depends on what was asked before


Delivery: TypeAlias = Piece | EngineError


class SequenceState:
    """State of a request that runs or waits for a slot; `num_read` of its tokens are in the KV cache.

    `error` is why it ended without an answer, if it did.
    """

    def __init__(self, request: Request, limit: int, decode: Decode, guide: Guide | None = None) -> None:
        self.request = request
        self.tokens = list(request.tokens)  # a list, as slot contents are: they compare faster
        self.limit = limit  # tokens it may generate
        self.slot = -1
        self.num_read = 0
        self.num_cached = 0  # tokens of its prompt that were not read because the cache held them
        self.last = -1  # newest token; not yet in the cache
        self.finished = False
        self.error: EngineError | None = None
        self._num_generated = 0
        self._text, self._decode = Detokenizer(decode), decode
        self._held = ""  # text that may become a stop string
        decoding = request.decoding
        self._noise = None if decoding.greedy else Noise(decoding.seed)
        self._guide = guide
        self._bias = decoding.logit_bias
        is_penalised = decoding.presence_penalty or decoding.frequency_penalty
        self._counts: Counter[int] | None = Counter() if is_penalised else None
        self._prompt: list[PromptToken] = []
        can_draft = draftable(decoding) and not self.adjusts and request.prompt_logprobs is None
        self._drafts = list(request.drafts) if can_draft else []
        self._generated: list[int] = []  # kept only while there are drafts to compare it with
        self.kept: tuple[int, ...] = ()  # what the newest token was drawn from, if `recorded` and truncated

    @property
    def reading(self) -> bool:
        """True while a part of the prompt is not in the cache."""
        return self.num_read < len(self.request.tokens)

    @property
    def draws(self) -> bool:
        """True if its tokens are drawn and not the most likely ones."""
        return self._noise is not None

    def fail(self, error: BaseException) -> None:
        """End the answer with an error."""
        self.finished = True
        if not isinstance(error, EngineError):
            cause, error = error, EngineError(f"the answer broke off: {type(error).__name__}: {error}")
            error.__cause__ = cause
        self.error = error

    @property
    def adjusts(self) -> bool:
        """True if the request changes logits before a token is chosen."""
        return self._guide is not None or bool(self._bias) or self._counts is not None

    def adjust(self, logits_V: Tensor) -> None:
        """Apply bias, penalties and the output format to the logits of the next token, in place."""
        for token, value in self._bias:
            logits_V[token] += value
        if self._counts is not None:
            decoding = self.request.decoding
            sampling.penalise(logits_V, self._counts, decoding.presence_penalty, decoding.frequency_penalty)
        if self._guide is not None:
            self._guide.forbid(logits_V, self.request.stop_tokens)

    def draft(self, room: int) -> tuple[int, ...]:
        """Return up to `room` likely next tokens, from the first draft that agrees with the answer so far."""
        count = len(self._generated)
        self._drafts = [
            draft for draft in self._drafts if len(draft) > count and list(draft[:count]) == self._generated
        ]
        room = min(room, self.limit - self._num_generated - 1)  # the model adds one token after a draft
        return self._drafts[0][count : count + room] if self._drafts and room > 0 else ()

    def closable(self, token: int) -> int:
        """Return the token, or another if its output format could not be closed within the budget."""
        if self._guide is None or token == self._guide.end or token in self.request.stop_tokens:
            return token
        return self._guide.closable(token, self.limit - self._num_generated)

    def noise(self) -> Noise:
        """The request's random numbers."""
        assert self._noise is not None, "a greedy request draws nothing"
        return self._noise

    @property
    def recorded(self) -> bool:
        """True if its pieces say from what distribution their token was drawn."""
        return self.request.recorded and self.draws and not self.adjusts

    def accept(
        self,
        token: int,
        logprob: float,
        alternatives: list[tuple[int, float]],
        sampled: float | None = None,
    ) -> Piece:
        """Append the next token and return its piece."""
        top = tuple((self._text.preview(other), value) for other, value in alternatives)
        own = self._text.preview(token) if self.request.decoding.top_logprobs is not None else ""
        self.last = token
        self._num_generated += 1
        if self._drafts:
            self._generated.append(token)
        if self._counts is not None:
            self._counts[token] += 1
        text, finish = self._advance(token)
        self.finished = finish is not None
        prompt, self._prompt = tuple(self._prompt), []
        return Piece(token, text, logprob, top, finish, own, prompt, sampled, self.kept, self.num_cached)

    @property
    def prompt_only(self) -> bool:
        """True if the request generates no tokens."""
        return self.limit == 0

    def end(self) -> Piece:
        """Return the one piece of a request that generates no tokens."""
        self.finished = True
        return Piece(-1, "", 0.0, finish="length", prompt=tuple(self._prompt), cached=self.num_cached)

    def add_prompt_token(
        self, token: int, logprob: float | None, alternatives: list[tuple[int, float]]
    ) -> None:
        """Store the log-probability (nats) and the alternatives of the next prompt token."""
        top = tuple((self._text_after_prompt(other), value) for other, value in alternatives)
        self._prompt.append(PromptToken(token, self._text_after_prompt(token), logprob, top))

    def _text_after_prompt(self, token: int) -> str:
        """Return the text that a token adds to the prompt token before it, its leading space included."""
        if not self._prompt:
            return self._decode((token,))
        last = self._prompt[-1].token
        alone, both = self._decode((last,)), self._decode((last, token))
        return both[len(alone) :] if both.startswith(alone) else self._decode((token,))

    def _advance(self, token: int) -> tuple[str, FinishReason | None]:
        """Return the text that is certain after this token, and the finish reason if the answer ends here."""
        if token in self.request.stop_tokens or (self._guide is not None and token == self._guide.end):
            return self._rest("stop")
        over = False
        if self._guide is not None:
            self._guide.accept(token)
            over = self._guide.over
        new, stops = self._text.feed(token), self.request.decoding.stop
        if stops:
            new, self._held, stopped = scan(self._held + new, stops)
            if stopped:
                return new, "stop"
        if self._num_generated < self.limit and not over:
            return new, None
        rest, finish = self._rest("stop" if over else "length")
        return new + rest, finish

    def _rest(self, finish: FinishReason) -> tuple[str, FinishReason]:
        """Return the text held back; an incomplete character at the end may still complete a stop string."""
        text, held, stopped = scan(self._held + self._text.finish(), self.request.decoding.stop)
        return (text, "stop") if stopped else (text + held, finish)


@contextmanager
def isolated(sequence: SequenceState) -> Iterator[None]:
    """Whatever is raised inside, even a panic of compiled code, ends this sequence and no other."""
    try:
        yield
    except BaseException as error:
        sequence.fail(error)


READ_PER_STEP = 256  # prompt tokens read in a step while nobody decodes: another prompt waits for no more
READ_BESIDE = 128  # beside sequences that decode: half the wait, 4 to 6% fewer prompt tokens a second (bench/prefixes.py)
MOST_BESIDE = 512  # beside them, if more requests wait for a first token than decode
DRAFTED_PER_STEP = 512  # tokens of all drafts together: each has logits as large as the vocabulary


class Batch:
    """The state of the decode loop: `add` and `drop` sequences, and call `step` while `busy`."""

    def __init__(self, forward: Forward, num_slots: int) -> None:
        self._forward = forward
        self._waiting: deque[SequenceState] = deque()
        self._running: list[SequenceState] = []  # in order of admission
        self.prefixes = forward.prefixes(num_slots)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def load(self) -> tuple[int, int]:
        """Number of running sequences and of sequences that wait for a slot."""
        return len(self._running), len(self._waiting)

    @property
    def cache_use(self) -> CacheUse:
        """What the memory for keys and values is used for."""
        return self.prefixes.usage()

    @property
    def running(self) -> list[SequenceState]:
        """The sequences that have a slot."""
        return list(self._running)

    @property
    def waiting(self) -> list[SequenceState]:
        """The sequences that wait for a slot."""
        return list(self._waiting)

    def add(self, sequence: SequenceState) -> None:
        """Queue a sequence; it runs as soon as a slot is free, in order of arrival."""
        self._waiting.append(sequence)

    def drop(self, sequence: SequenceState) -> None:
        """Remove a sequence and free its slot; does nothing if it has ended."""
        if sequence in self._running:
            self._release(sequence)
        elif sequence in self._waiting:
            if sequence is self._waiting[0]:  # the others have no turn yet
                self.prefixes.withdraw()
            self._waiting.remove(sequence)

    def step(self) -> list[tuple[SequenceState, Delivery]]:
        """Admit sequences, feed the newest tokens and parts of the prompts in one forward, return the new
        pieces.

        A sequence that fails ends with its error; the others go on as if it had not been there. Raises only
        what no sequence can be blamed for.
        """
        broken: list[SequenceState] = []
        while self._waiting:
            sequence = self._waiting[0]
            with isolated(sequence):
                self._admit(sequence)
            if sequence.slot < 0 and not sequence.finished:
                break  # there is no slot or no memory now
            self._waiting.popleft()
            self.prefixes.withdraw()
            broken += [sequence] if sequence.finished else []
        rows, sampled = Rows(), list[SampledRow]()
        room = DRAFTED_PER_STEP
        for sequence in self._running:
            if not sequence.reading:
                with isolated(sequence):
                    row = self._sampled_row(rows, sequence, (sequence.last,), sequence.num_read, room)
                    room -= len(row.draft)
                    sampled.append(row)
        chunks = self._read_prompts(rows, sampled)
        pieces = self._pieces(rows, sampled, chunks) if rows.tokens else []
        broken += [sequence for sequence in self._running if sequence.error is not None]
        for sequence in [*broken, *(row.sequence for row in sampled if row.sequence.error is None)]:
            if sequence.finished:
                self._release(sequence)
        return [*pieces, *((s, s.error) for s in broken if s.error is not None)]

    def _pieces(
        self, rows: Rows, sampled: list[SampledRow], chunks: list[tuple[SequenceState, int, int, int]]
    ) -> list[tuple[SequenceState, Delivery]]:
        """Run the forward and choose the next tokens."""
        output = self._run(rows)
        if not output.total_R.isfinite().all():
            _fail_broken(sampled, chunks, output.total_R)
        for sequence, start, end, first in chunks:
            if sequence.error is None:
                with isolated(sequence):
                    self.prefixes.wrote(sequence.slot, sequence.tokens[start:end])
            if sequence.request.prompt_logprobs is not None and not sequence.finished:
                with isolated(sequence):
                    _score_prompt(sequence, start, min(end, len(sequence.tokens) - 1), output, first)
        for row in sampled:
            if row.fed and row.sequence.error is None:
                with isolated(row.sequence):
                    self.prefixes.wrote(row.sequence.slot, (row.sequence.last,))
                row.sequence.num_read += 1
        pieces: list[tuple[SequenceState, Delivery]] = []
        pieces += _sample([row for row in sampled if not row.draft and not row.sequence.finished], output)
        for row in sampled:
            if row.draft and not row.sequence.finished:
                with isolated(row.sequence):
                    verified = _verify(row, output)
                    pieces += [(row.sequence, piece) for piece in verified]
                    self.prefixes.wrote(row.sequence.slot, row.draft[: len(verified) - 1])
                    row.sequence.num_read += len(verified) - 1
        return pieces

    def _run(self, rows: Rows) -> NativeStep:
        """Run the forward; if it fails, run it again slot by slot and end only the sequences it fails on.

        Raises if it fails on all of them: then the engine is at fault.
        """
        try:
            return self._forward.run(rows)
        except Exception as error:
            bounds, running = run_bounds(rows), {sequence.slot: sequence for sequence in self._running}
            parts: list[NativeStep | int] = []  # a number: so many rows without an output
            for a, b in pairwise(bounds):
                read = [i - a for i in rows.read if a <= i < b]
                try:
                    alone = self._forward.run(
                        Rows(rows.tokens[a:b], rows.slots[a:b], rows.positions[a:b], read)
                    )
                    parts.append(NativeStep(*(x.clone() for x in alone)))
                except Exception as own:
                    running[rows.slots[a]].fail(own)
                    parts.append(len(read))
            outputs = [part for part in parts if isinstance(part, NativeStep)]
            if not outputs:
                raise error
            blank = [
                [x.new_zeros((part, *x.shape[1:])) for x in outputs[0]] if isinstance(part, int) else part
                for part in parts
            ]
            return NativeStep(*(torch.cat(list(x)) for x in zip(*blank)))

    def _sampled_row(
        self, rows: Rows, sequence: SequenceState, tokens: tuple[int, ...], start: int, room: int
    ) -> SampledRow:
        """Feed tokens from position `start` on and a draft after them; logits are read from the last on."""
        draft = sequence.draft(room) if self._forward.exact and not sequence.prompt_only else ()
        self.prefixes.reserve(sequence.slot, start + len(tokens) + len(draft))
        rows.add((*tokens, *draft), sequence.slot, start)
        first = len(rows.read)
        rows.read += range(len(rows.tokens) - len(draft) - 1, len(rows.tokens))
        return SampledRow(sequence, first, draft, fed=not sequence.reading)

    def _admit(self, sequence: SequenceState) -> None:
        """Give a sequence a slot and what is known of its prompt, if there is a slot with memory for all of it."""
        prompt, scored = sequence.tokens, sequence.request.prompt_logprobs is not None
        # The logits of every prompt token are needed if they are scored, so nothing is taken from the cache.
        found = self.prefixes.admit(prompt, sequence.limit, reuse=not scored)
        if found is None:
            return
        sequence.slot, sequence.num_read = found
        sequence.num_cached = sequence.num_read
        if scored:
            sequence.add_prompt_token(prompt[0], None, [])
        self._running.append(sequence)

    def _release(self, sequence: SequenceState) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
        if sequence.slot >= 0:  # after an error nothing says what its cache holds
            self.prefixes.release(sequence.slot, keep=sequence.error is None)
            sequence.slot = -1

    def _room(self, reading: int, decoding: int) -> int:
        """Return how many prompt tokens a step reads: more tokens if more prompts are read than sequences decode."""
        if not decoding:
            return READ_PER_STEP
        least = min(READ_BESIDE, READ_PER_STEP)
        return max(least, min(least * reading // decoding, MOST_BESIDE) // 32 * 32)

    def _read_prompts(
        self, rows: Rows, sampled: list[SampledRow]
    ) -> list[tuple[SequenceState, int, int, int]]:
        """Add parts of the prompts, in the order of `_turns`: (sequence, start, end, first read row)."""
        decoding = {row.sequence for row in sampled}
        readers = [s for s in self._running if s.reading and s not in decoding]
        left = self._room(len(readers), len(decoding))  # reading more does not help those without a slot
        chunks: list[tuple[SequenceState, int, int, int]] = []
        for sequence, most in _turns(readers, left):
            if left:
                with isolated(sequence):
                    left -= self._read_prompt(sequence, rows, sampled, chunks, min(left, most))
        return chunks

    def _read_prompt(
        self,
        sequence: SequenceState,
        rows: Rows,
        sampled: list[SampledRow],
        chunks: list[tuple[SequenceState, int, int, int]],
        left: int,
    ) -> int:
        """Add the next part of one prompt, and return how many of the `left` tokens it takes."""
        scored = sequence.request.prompt_logprobs is not None
        if scored:
            left = min(left, READ_PER_STEP)  # each token has logits as large as the vocabulary
        else:
            prompt, before = sequence.tokens, sequence.num_read
            sequence.num_read = self.prefixes.more(sequence.slot, prompt)
            sequence.num_cached += sequence.num_read - before
            coming = [
                min(common_prefix(other.tokens[:end], prompt), len(prompt) - 1) for other, _, end, _ in chunks
            ]
            if max(coming, default=0) >= sequence.num_read + WORTH_COPYING:
                return 0  # another sequence reads the same prefix in this step: copy it in the next
        start = sequence.num_read
        chunk = sequence.request.tokens[start : start + left]
        first, end = len(rows.read), start + len(chunk)
        used = len(chunk)
        if end == len(sequence.tokens) and not scored:
            row = self._sampled_row(rows, sequence, chunk, start, left - used)
            used += len(row.draft)
            sampled.append(row)
        else:
            self.prefixes.reserve(sequence.slot, end)
            rows.add(chunk, sequence.slot, start)
            rows.read += range(len(rows.tokens) - len(chunk), len(rows.tokens)) if scored else ()
        chunks.append((sequence, start, end, first))
        sequence.num_read = end
        if scored and not sequence.reading:
            sampled.append(SampledRow(sequence, len(rows.read) - 1))
        return used


def _turns(readers: list[SequenceState], room: int) -> list[tuple[SequenceState, int]]:
    """Return which prompts this step reads, in order, and at most how many tokens of each.

    The prompt with the fewest tokens left comes first, so that a short one does not wait for long ones (shortest remaining time first). Half of
    the room is for the oldest, so that no prompt waits for all that come after it.
    """
    if len(readers) < 2:
        return [(s, room) for s in readers]
    left = {s: len(s.tokens) - s.num_read for s in readers}
    oldest, first = readers[0], min(readers, key=lambda s: left[s])
    shared = common_prefix(first.tokens, oldest.tokens) if oldest.request.prompt_logprobs is None else 0
    copies = shared >= first.num_read + WORTH_COPYING  # then the oldest waits for what the first reads
    kept = 0 if first is oldest or copies else min(room // 2, left[oldest])
    others = [(s, room) for s in readers if s is not first]
    return [(first, max(room - kept, 1)), *others]


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A sequence that generates in this step, from the `first` read row on and as far as its draft is right.

    `fed`: the row holds its newest token and not the end of its prompt.
    """

    sequence: SequenceState
    first: int
    draft: tuple[int, ...] = ()
    fed: bool = False


def _verify(row: SampledRow, output: NativeStep) -> list[Piece]:
    """Accept the tokens of a draft that are right, and the model's own token after them."""
    rows = slice(row.first, row.first + len(row.draft) + 1)
    best = output.best_R[rows].tolist()
    right = next((i for i, token in enumerate(row.draft) if token != best[i]), len(row.draft))
    logits_NV, tokens_N = output.logits_RV[rows][: right + 1], output.best_R[rows][: right + 1]
    logprobs = (logits_NV.gather(1, tokens_N[:, None])[:, 0] - output.total_R[rows][: right + 1]).tolist()
    others = _alternatives(logits_NV, [row.sequence.request.decoding.top_logprobs or 0] * (right + 1))
    pieces = []
    for token, logprob, top in zip(best, logprobs, others):
        pieces.append(row.sequence.accept(token, logprob, top))
        if row.sequence.finished:
            break
    return pieces


def _score_prompt(sequence: SequenceState, start: int, end: int, output: NativeStep, first: int) -> None:
    """Store log-probabilities of prompt tokens after `start` to `end`; row `first` is position `start`."""
    count = end - start
    if not count:
        return
    logits_NV, total_N = output.logits_RV[first : first + count], output.total_R[first : first + count]
    following = sequence.tokens[start + 1 : end + 1]
    logprobs = (
        logits_NV.gather(1, torch.tensor(following, device=logits_NV.device)[:, None])[:, 0] - total_N
    ).tolist()
    others = _alternatives(logits_NV, [sequence.request.prompt_logprobs or 0] * count)
    for token, logprob, top in zip(following, logprobs, others):
        sequence.add_prompt_token(token, logprob, top)


def _fail_broken(
    sampled: list[SampledRow], chunks: list[tuple[SequenceState, int, int, int]], total_R: Tensor
) -> None:
    """End the sequences whose logits have a sum that is no number."""
    spans = [(row.sequence, row.first, row.first + len(row.draft) + 1) for row in sampled]
    spans += [
        (s, first, first + end - start)
        for s, start, end, first in chunks
        if s.request.prompt_logprobs is not None
    ]
    for sequence, first, end in spans:
        if not total_R[first:end].isfinite().all():
            sequence.fail(
                EngineError("the model's logits are no numbers (NaN or infinity): its weights are broken")
            )


def _sample(sampled: list[SampledRow], output: NativeStep) -> list[tuple[SequenceState, Piece]]:
    """Choose one token for each sequence; unmodified greedy ones take the best token of the forward."""
    pieces: list[tuple[SequenceState, Piece]] = []
    for row in sampled:
        if row.sequence.prompt_only:
            with isolated(row.sequence):
                pieces.append((row.sequence, row.sequence.end()))
    generating = [row for row in sampled if not row.sequence.prompt_only]
    if not generating:
        return pieces
    sequences, at = [row.sequence for row in generating], [row.first for row in generating]
    whole = len(at) == len(output.best_R) and at == list(range(len(at)))
    logits_NV, best_N, total_N = (x if whole else x[at] for x in output)
    tokens_N = best_N.clone()
    chosen = [i for i, s in enumerate(sequences) if s.adjusts or s.draws]
    if chosen:
        some = [sequences[i] for i in chosen]
        copied = len(chosen) < len(sequences) or any(s.adjusts for s in some)
        tokens_N[chosen] = _choose(some, logits_NV[chosen] if copied else logits_NV)
    logprobs = (logits_NV.gather(1, tokens_N[:, None])[:, 0] - total_N).tolist()
    others = _alternatives(logits_NV, [s.request.decoding.top_logprobs or 0 for s in sequences])
    sampled_N = _recorded(sequences, logits_NV, tokens_N)
    for i, (sequence, token) in enumerate(zip(sequences, tokens_N.tolist())):
        if not sequence.finished:
            with isolated(sequence):
                pieces.append((sequence, sequence.accept(token, logprobs[i], others[i], sampled_N.get(i))))
    return pieces


def _choose(sequences: list[SequenceState], logits_NV: Tensor) -> Tensor:
    """Choose tokens of sequences that change logits (in place: then these are a copy) or draw: tokens_N."""
    noises: dict[int, Noise] = {}  # by row
    for i, sequence in enumerate(sequences):
        with isolated(sequence):
            if sequence.adjusts:
                sequence.adjust(logits_NV[i])
            if sequence.draws:
                noises[i] = sequence.noise()
    drawing = len(noises) == len(sequences)
    tokens_N = torch.zeros(len(sequences), dtype=torch.long) if drawing else sampling.greedy(logits_NV)
    if noises:
        try:
            tokens_N[list(noises)] = _drawn(sequences, logits_NV, noises)
        except Exception:  # one of them is at fault; a draw alone is the draw in a batch
            for i, noise in noises.items():
                with isolated(sequences[i]):
                    tokens_N[i] = _drawn(sequences, logits_NV, {i: noise})[0]
    for i, sequence in enumerate(sequences):
        if sequence.request.decoding.form is not None and not sequence.finished:
            with isolated(sequence):
                tokens_N[i] = sequence.closable(int(tokens_N[i]))
    return tokens_N


def _drawn(sequences: list[SequenceState], logits_NV: Tensor, noises: dict[int, Noise]) -> Tensor:
    """Draw the tokens of some rows, each with its settings and its random numbers."""
    asked, vocab = [sequences[i].request.decoding for i in noises], logits_NV.shape[1]
    tokens_N, kept = sampling.drawn(
        logits_NV if len(noises) == len(logits_NV) else logits_NV[list(noises)],
        [sampling.DrawSettings(d.temperature, d.top_p, d.min_p, min(d.top_k or 0, vocab)) for d in asked],
        list(noises.values()),
        [sequences[i].recorded and is_truncated(sequences[i].request.decoding) for i in noises],
    )
    for n, i in enumerate(noises):
        sequences[i].kept = tuple(kept[n].tolist()) if n in kept else ()
    return tokens_N


def is_truncated(decoding: Decoding) -> bool:
    """True if top_k, top_p or min_p may exclude tokens from a draw."""
    return decoding.top_p < 1 or decoding.top_k is not None or decoding.min_p > 0


def _recorded(sequences: list[SequenceState], logits_NV: Tensor, tokens_N: Tensor) -> dict[int, float]:
    """Return the log-probability (nats) with which each token was drawn, by row, where that is recorded.

    Training computes the same function of the same logits, so both have the same bits.
    """
    rows = [i for i, sequence in enumerate(sequences) if sequence.recorded]
    if not rows:
        return {}
    kept = [(n, token) for n, i in enumerate(rows) for token in sequences[i].kept]
    of_K, kept_K = torch.tensor(kept, device=logits_NV.device, dtype=torch.long).reshape(-1, 2).unbind(1)
    temperature_N = logits_NV.new_tensor([sequences[i].request.decoding.temperature for i in rows])
    if len(rows) < len(sequences):
        logits_NV, tokens_N = logits_NV[rows], tokens_N[rows]
    sampled_N, _ = drawn_logprobs(logits_NV, tokens_N, Drawn(temperature_N, kept_K, of_K))
    return dict(zip(rows, sampled_N.tolist()))


def _alternatives(logits_NV: Tensor, wanted: list[int]) -> list[list[tuple[int, float]]]:
    """Return the `wanted` most likely (token, logprob) pairs of each row."""
    found: list[list[tuple[int, float]]] = [[] for _ in wanted]
    rows = [i for i, k in enumerate(wanted) if k]
    if rows:
        logprobs_NK, tokens_NK = sampling.top_logprobs(logits_NV[rows], max(wanted))
        for i, tokens, logprobs in zip(rows, tokens_NK.tolist(), logprobs_NK.tolist()):
            found[i] = list(zip(tokens, logprobs))[: wanted[i]]
    return found
