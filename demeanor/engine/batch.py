"""The sequences in flight over the slots of one KV cache; `step` moves each of them by at most one token.

In: sequences. Out: (sequence, piece) pairs. Admission is in order of arrival. A prefix that any slot holds, of a sequence
running or gone, is not read again: a new sequence takes the free slot that knows most of its prompt and copies what another
knows beyond that. So a system prompt, or one prompt asked 8 times, is read once. Knows nothing of threads, callers or text.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from demeanor.engine import sampling
from demeanor.engine.forward import Forward, Rows
from demeanor.engine.request import Piece
from demeanor.engine.sequence import Sequence
from demeanor.errors import EngineError
from demeanor.model.native import Said

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
        rows, speaking = Rows(), list[Speaker]()
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
    ) -> Speaker:
        """Feed tokens from position `start` on, and what it may say after them; it speaks from the last of them and from each guess."""
        guess = sequence.guess(room) if self._forward.exact and not sequence.silent else ()
        rows.add((*tokens, *guess), sequence.slot, start)
        first = len(rows.read)
        rows.read += range(len(rows.tokens) - len(guess) - 1, len(rows.tokens))
        return Speaker(sequence, first, guess, fed=not sequence.reading)

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

    def _read(self, rows: Rows, speaking: list[Speaker]) -> list[tuple[Sequence, int, int, int]]:
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
                speaking.append(Speaker(sequence, len(rows.read) - 1))
        return told


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who says something in a step: from the row at `first` of those that are read, and beyond it as far as its guess is right.

    `fed`: its newest token was fed, and not the end of its prompt.
    """

    sequence: Sequence
    first: int
    guess: tuple[int, ...] = ()
    fed: bool = False


def _agree(one: Speaker, said: Said) -> list[Piece]:
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


def _tell(sequence: Sequence, start: int, end: int, said: Said, first: int) -> None:
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


def _speak(speaking: list[Speaker], said: Said) -> list[tuple[Sequence, Piece]]:
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
