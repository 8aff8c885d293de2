"""What goes into an engine and what comes out of it: a prompt of tokens with its decoding, and one piece per new token."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demeanor.core.errors import EngineError
from demeanor.core.types import Decoding, FinishReason
from demeanor.engine import sampling
from demeanor.engine.detokenize import Decode, Detokenizer, scan
from demeanor.engine.forward import Forward, Rows
from demeanor.model.native import NativeStep

if TYPE_CHECKING:
    from demeanor.engine.structured import Guide


def draftable(decoding: Decoding) -> bool:
    """Does it say the likeliest token always, so that a draft can be checked?"""
    changed = decoding.logit_bias or decoding.presence_penalty or decoding.frequency_penalty
    return decoding.temperature == 0 and decoding.form is None and not changed


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to continue until `stop_tokens`, a stop string of `decoding`, or its max_tokens.

    `prompt_logprobs`: also tell how likely each prompt token was, with so many alternatives (0 to 20); None: do not. Only with it
    may max_tokens be 0: nothing is said then. `drafts`: answers it may well give, which are checked many tokens at a time instead of
    written one by one (speculative decoding, Leviathan et al. 2023, greedy case); what is said never depends on them.
    """

    tokens: tuple[int, ...]
    decoding: Decoding
    stop_tokens: frozenset[int] = frozenset()
    prompt_logprobs: int | None = None
    drafts: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptToken:
    """One prompt token: its text, its log-probability (nats; None for the first, which nothing comes before), and alternatives."""

    token: int
    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token and the text that became certain with it; the last one of a request has a `finish`.

    `text` may be "" while half a character or half a stop string is held back; the stop itself is never in it.
    `logprob` (nats) is of the unmodified distribution. `top` and `own` (the token's own text, nothing held back) are
    filled when the request asked for top_logprobs. `prompt` is on the first piece of a request that asked for prompt_logprobs,
    one Read per prompt token. With max_tokens 0 there is one piece, of `token` -1 and no text.
    """

    token: int
    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    finish: FinishReason | None = None
    own: str = ""
    prompt: tuple[PromptToken, ...] = ()


class Sequence:
    """State of a request while it holds (or waits for) a slot; `num_read` of its tokens are in the KV cache."""

    def __init__(self, request: Request, limit: int, decode: Decode, guide: Guide | None = None) -> None:
        self.request = request
        self.tokens = list(
            request.tokens
        )  # the prompt; a list, as slots' contents are, so that comparing them is fast
        self.limit = limit  # tokens it may say: max_tokens, clipped by the context
        self.slot = -1
        self.num_read = 0
        self.last = -1  # newest token; not yet in the cache
        self._num_said = 0
        self._text, self._text_of = Detokenizer(decode), decode
        self._held = ""
        self._finished = False
        self._generator = _generator(request.decoding.seed) if request.decoding.temperature > 0 else None
        decoding = request.decoding
        self._guide = guide
        self._bias = decoding.logit_bias
        self._times: Counter[int] | None = (
            Counter() if decoding.presence_penalty or decoding.frequency_penalty else None
        )
        self._prompt: list[PromptToken] = []
        self._drafts = (
            list(request.drafts)
            if draftable(decoding) and not self.moves and request.prompt_logprobs is None
            else []
        )
        self._said: list[int] = []  # kept only while a draft goes on like it

    @property
    def reading(self) -> bool:
        """Is a part of the prompt not yet in the cache?"""
        return self.num_read < len(self.request.tokens)

    @property
    def moves(self) -> bool:
        """Does it change logits before it chooses?"""
        return self._guide is not None or bool(self._bias) or self._times is not None

    def move(self, logits_V: Tensor) -> None:
        """Change the logits of its next token, in place: bias, penalties, and what its form forbids."""
        for token, value in self._bias:
            logits_V[token] += value
        if self._times is not None:
            sampling.penalise(
                logits_V,
                self._times,
                self.request.decoding.presence_penalty,
                self.request.decoding.frequency_penalty,
            )
        if self._guide is not None:
            self._guide.forbid(logits_V, self.request.stop_tokens)

    def guess(self, room: int) -> tuple[int, ...]:
        """What it may say next, `room` tokens at most, by the first of its drafts that began like its answer."""
        count = len(self._said)
        self._drafts = [
            draft for draft in self._drafts if len(draft) > count and list(draft[:count]) == self._said
        ]
        room = min(room, self.limit - self._num_said - 1)  # one more token is always said behind a guess
        return self._drafts[0][count : count + room] if self._drafts and room > 0 else ()

    def settle(self, token: int) -> int:
        """The token that was chosen, or another where its form could not be closed any more within the budget."""
        if self._guide is None or token == self._guide.end or token in self.request.stop_tokens:
            return token
        return self._guide.settle(token, self.limit - self._num_said)

    @property
    def finished(self) -> bool:
        return self._finished

    def noise(self, vocab_size: int) -> Tensor:
        """Draw the request's own random numbers for its next token: uniform_V."""
        assert self._generator is not None, "a greedy request draws nothing"
        return sampling.race_noise(self._generator, vocab_size)

    def say(self, token: int, logprob: float, alternatives: list[tuple[int, float]]) -> Piece:
        """Take the next token and return its piece."""
        asked = self.request.decoding.top_logprobs is not None
        top = tuple((self._text.preview(other), value) for other, value in alternatives)
        own = self._text.preview(token) if asked else ""
        self.last = token
        self._num_said += 1
        if self._drafts:
            self._said.append(token)
        if self._times is not None:
            self._times[token] += 1
        text, finish = self._advance(token)
        self._finished = finish is not None
        prompt, self._prompt = tuple(self._prompt), []
        return Piece(token, text, logprob, top, finish, own, prompt)

    @property
    def silent(self) -> bool:
        """Was only its prompt to be read?"""
        return self.limit == 0

    def end(self) -> Piece:
        """The one piece of a silent request."""
        self._finished = True
        return Piece(-1, "", 0.0, finish="length", prompt=tuple(self._prompt))

    def note(self, token: int, logprob: float | None, alternatives: list[tuple[int, float]]) -> None:
        """Keep how likely the next prompt token was."""
        top = tuple((self._behind(other), value) for other, value in alternatives)
        self._prompt.append(PromptToken(token, self._behind(token), logprob, top))

    def _behind(self, token: int) -> str:
        """The text that a token adds to the prompt token before it: its space is part of it."""
        if not self._prompt:
            return self._text_of((token,))
        last = self._prompt[-1].token
        alone, both = self._text_of((last,)), self._text_of((last, token))
        return both[len(alone) :] if both.startswith(alone) else self._text_of((token,))

    def _advance(self, token: int) -> tuple[str, FinishReason | None]:
        """Text that is certain after this token, and why the answer ends here if it does."""
        if token in self.request.stop_tokens or (self._guide is not None and token == self._guide.end):
            return self._rest("stop")
        over = False
        if self._guide is not None:
            self._guide.take(token)
            over = self._guide.over
        new, stops = self._text.feed(token), self.request.decoding.stop
        if stops:
            new, self._held, stopped = scan(self._held + new, stops)
            if stopped:
                return new, "stop"
        if self._num_said < self.limit and not over:
            return new, None
        rest, finish = self._rest("stop" if over else "length")
        return new + rest, finish

    def _rest(self, finish: FinishReason) -> tuple[str, FinishReason]:
        """Give out what was held back; the half character at the end may still complete a stop string."""
        text, held, stopped = scan(self._held + self._text.finish(), self.request.decoding.stop)
        return (text, "stop") if stopped else (text + held, finish)


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % 2**64)
    return generator


READ_PER_STEP = (
    256  # prompt tokens read between two decoding steps, so that a long prompt does not stall the others
)
GUESSED_PER_STEP = (
    512  # tokens of all drafts together: each has logits of its own, as large as the vocabulary
)
WORTH_COPYING = 8  # tokens; a copy costs about as much as reading so many


class Batch:
    """A decode loop without a loop: `add`, `drop`, and `step` while `busy`."""

    def __init__(self, forward: Forward, num_slots: int) -> None:
        self._forward = forward
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of admission
        self._free: list[int] = list(range(num_slots))  # the one that has been free longest first
        self._contents: list[list[int]] = [
            [] for _ in range(num_slots)
        ]  # tokens whose keys and values each slot holds

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences run and how many wait for a slot."""
        return len(self._running), len(self._waiting)

    @property
    def sequences(self) -> list[Sequence]:
        """All of them, running and waiting."""
        return [*self._running, *self._waiting]

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it runs as soon as a slot is free and everybody before it has one."""
        self._waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence and free its slot; nothing happens if it has ended."""
        if sequence in self._running:
            self._release(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)

    def step(self) -> list[tuple[Sequence, Piece]]:
        """Admit, feed everyone's newest token and some more of the prompts in one go; return the new pieces."""
        while self._free and self._waiting:
            self._admit(self._waiting.popleft())
        rows, speaking = Rows(), list[SampledRow]()
        room = GUESSED_PER_STEP
        for sequence in self._running:
            if not sequence.reading:
                speaking.append(self._speaker(rows, sequence, (sequence.last,), sequence.num_read, room))
                room -= len(speaking[-1].guess)
        told = self._read(rows, speaking)
        if not rows.tokens:
            return []
        said = self._forward.run(rows)
        if said.total_R.isnan().any():
            raise EngineError("the model's logits are not numbers (NaN): its weights are broken")
        for sequence, start, end, first in told:
            self._contents[sequence.slot] += sequence.tokens[start:end]
            if sequence.request.prompt_logprobs is not None:
                _tell(sequence, start, min(end, len(sequence.tokens) - 1), said, first)
        for one in speaking:
            if one.fed:
                self._contents[one.sequence.slot].append(one.sequence.last)
                one.sequence.num_read += 1
        pieces = _speak([one for one in speaking if not one.guess], said)
        for one in speaking:
            if one.guess:
                agreed = _agree(one, said)
                pieces += [(one.sequence, piece) for piece in agreed]
                self._contents[one.sequence.slot] += one.guess[: len(agreed) - 1]
                one.sequence.num_read += len(agreed) - 1
        for one in speaking:
            if one.sequence.finished:
                self._release(one.sequence)
        return pieces

    def _speaker(
        self, rows: Rows, sequence: Sequence, tokens: tuple[int, ...], start: int, room: int
    ) -> SampledRow:
        """Feed tokens from position `start` on, and what it may say after them; it speaks from the last of them and from each guess."""
        guess = sequence.guess(room) if self._forward.exact and not sequence.silent else ()
        rows.add((*tokens, *guess), sequence.slot, start)
        first = len(rows.read)
        rows.read += range(len(rows.tokens) - len(guess) - 1, len(rows.tokens))
        return SampledRow(sequence, first, guess, fed=not sequence.reading)

    def _admit(self, sequence: Sequence) -> None:
        prompt = sequence.tokens
        slot = max(
            self._free, key=lambda free: _shared(self._contents[free], prompt)
        )  # of equals, the longest free
        self._free.remove(slot)
        sequence.slot = slot
        if (
            sequence.request.prompt_logprobs is None
        ):  # who asks how likely its prompt is must see all of it read
            sequence.num_read = min(
                _shared(self._contents[slot], prompt), len(prompt) - 1
            )  # its last hidden state is needed
        else:
            sequence.note(prompt[0], None, [])
        del self._contents[slot][sequence.num_read :]
        self._running.append(sequence)

    def _borrow(self, sequence: Sequence) -> None:
        """Copy from another slot what it knows of this prompt beyond what has been read."""
        prompt = sequence.tokens
        source = max(range(len(self._contents)), key=lambda slot: _shared(self._contents[slot], prompt))
        known = min(_shared(self._contents[source], prompt), len(prompt) - 1)
        if known >= sequence.num_read + WORTH_COPYING:
            self._forward.copy(source, sequence.slot, known)
            self._contents[sequence.slot] = prompt[:known]
            sequence.num_read = known

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free.append(sequence.slot)

    def _read(self, rows: Rows, speaking: list[SampledRow]) -> list[tuple[Sequence, int, int, int]]:
        """Add up to READ_PER_STEP prompt tokens, first come first served: (who, from, to, first of its rows that are read)."""
        left = READ_PER_STEP
        told: list[tuple[Sequence, int, int, int]] = []
        for sequence in self._running:
            if not left:
                break
            if not sequence.reading or any(one.sequence is sequence for one in speaking):
                continue
            asked = sequence.request.prompt_logprobs is not None
            if not asked:
                self._borrow(sequence)
                if any(
                    min(_shared(one.tokens[:end], sequence.tokens), len(sequence.tokens) - 1)
                    >= sequence.num_read + WORTH_COPYING
                    for one, _, end, _ in told
                ):
                    continue  # somebody reads the same right now: borrow it next time
            start = sequence.num_read
            chunk = sequence.request.tokens[start : start + left]
            first, end = len(rows.read), start + len(chunk)
            left -= len(chunk)
            told.append((sequence, start, end, first))
            if end == len(sequence.tokens) and not asked:
                speaking.append(self._speaker(rows, sequence, chunk, start, left))
                left -= len(speaking[-1].guess)
            else:
                rows.add(chunk, sequence.slot, start)
                rows.read += range(len(rows.tokens) - len(chunk), len(rows.tokens)) if asked else ()
            sequence.num_read = end
            if asked and not sequence.reading:
                speaking.append(SampledRow(sequence, len(rows.read) - 1))
        return told


@dataclass(frozen=True, slots=True)
class SampledRow:
    """Who says something in a step: from the row at `first` of those that are read, and beyond it as far as its guess is right.

    `fed`: its newest token was fed, and not the end of its prompt.
    """

    sequence: Sequence
    first: int
    guess: tuple[int, ...] = ()
    fed: bool = False


def _agree(one: SampledRow, said: NativeStep) -> list[Piece]:
    """Say what a guess has right, and the token after it, which is the model's own."""
    rows = slice(one.first, one.first + len(one.guess) + 1)
    best = said.best_R[rows].tolist()
    right = next((i for i, token in enumerate(one.guess) if token != best[i]), len(one.guess))
    logits_NV, tokens_N = said.logits_RV[rows][: right + 1], said.best_R[rows][: right + 1]
    logprobs = (logits_NV.gather(1, tokens_N[:, None])[:, 0] - said.total_R[rows][: right + 1]).tolist()
    others = _alternatives(logits_NV, [one.sequence.request.decoding.top_logprobs or 0] * (right + 1))
    pieces = []
    for token, logprob, top in zip(best, logprobs, others):
        pieces.append(one.sequence.say(token, logprob, top))
        if one.sequence.finished:
            break
    return pieces


def _tell(sequence: Sequence, start: int, end: int, said: NativeStep, first: int) -> None:
    """Note how likely each prompt token after `start` up to `end` was; row `first` + i is the one at position `start` + i."""
    count = end - start
    if not count:
        return
    logits_NV, total_N = said.logits_RV[first : first + count], said.total_R[first : first + count]
    following = sequence.tokens[start + 1 : end + 1]
    logprobs = (
        logits_NV.gather(1, torch.tensor(following, device=logits_NV.device)[:, None])[:, 0] - total_N
    ).tolist()
    others = _alternatives(logits_NV, [sequence.request.prompt_logprobs or 0] * count)
    for token, logprob, top in zip(following, logprobs, others):
        sequence.note(token, logprob, top)


def _speak(speaking: list[SampledRow], said: NativeStep) -> list[tuple[Sequence, Piece]]:
    """Choose one token for each who speaks and hand it over; greedy ones that change no logits take the best that is known."""
    loud = [(one.sequence, one.first) for one in speaking if not one.sequence.silent]
    pieces = [(one.sequence, one.sequence.end()) for one in speaking if one.sequence.silent]
    if not loud:
        return pieces
    sequences, at = [sequence for sequence, _ in loud], [row for _, row in loud]
    whole = len(at) == len(said.best_R) and at == list(range(len(at)))
    logits_NV, best_N, total_N = (x if whole else x[at] for x in said)
    tokens_N = best_N.clone()
    chosen = [i for i, s in enumerate(sequences) if s.moves or s.request.decoding.temperature > 0]
    if chosen:
        tokens_N[chosen] = _chosen([sequences[i] for i in chosen], logits_NV[chosen])
    logprobs = (logits_NV.gather(1, tokens_N[:, None])[:, 0] - total_N).tolist()
    others = _alternatives(logits_NV, [s.request.decoding.top_logprobs or 0 for s in sequences])
    return pieces + [
        (sequence, sequence.say(token, logprob, top))
        for sequence, token, logprob, top in zip(sequences, tokens_N.tolist(), logprobs, others)
    ]


def _chosen(sequences: list[Sequence], logits_NV: Tensor) -> Tensor:
    """Tokens of sequences that change their logits (in place, this is their copy) or draw: tokens_N."""
    for sequence, logits_V in zip(sequences, logits_NV):
        if sequence.moves:
            sequence.move(logits_V)
    tokens_N = sampling.greedy(logits_NV)
    settings = [sequence.request.decoding for sequence in sequences]
    rows = [i for i, setting in enumerate(settings) if setting.temperature > 0]
    if rows:
        drawn = [settings[i] for i in rows]
        uniform_NV = torch.stack([sequences[i].noise(logits_NV.shape[-1]) for i in rows]).to(logits_NV.device)
        temperature_N, top_p_N, min_p_N = (
            logits_NV.new_tensor(x) for x in zip(*((d.temperature, d.top_p, d.min_p) for d in drawn))
        )
        top_k_N = torch.tensor([d.top_k or 0 for d in drawn], device=logits_NV.device)
        tokens_N[rows] = sampling.draw(logits_NV[rows], temperature_N, top_p_N, uniform_NV, top_k_N, min_p_N)
    for i, sequence in enumerate(sequences):
        if sequence.request.decoding.form is not None:
            tokens_N[i] = sequence.settle(int(tokens_N[i]))
    return tokens_N


def _alternatives(logits_NV: Tensor, wanted: list[int]) -> list[list[tuple[int, float]]]:
    """Return the `wanted` most likely (token, logprob) pairs of each row; rows that want none cost nothing."""
    found: list[list[tuple[int, float]]] = [[] for _ in wanted]
    rows = [i for i, k in enumerate(wanted) if k]
    if rows:
        logprobs_NK, tokens_NK = sampling.top_logprobs(logits_NV[rows], max(wanted))
        for i, tokens, logprobs in zip(rows, tokens_NK.tolist(), logprobs_NK.tolist()):
            found[i] = list(zip(tokens, logprobs))[: wanted[i]]
    return found


def _shared(first: list[int], second: list[int]) -> int:
    """Length of the common prefix, by halving: comparing slices costs no Python per token."""
    low, high = 0, min(len(first), len(second))
    if not high or first[0] != second[0]:
        return 0
    if first[:high] == second[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low
