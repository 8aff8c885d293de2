"""The sequences in flight over the slots of one KV cache; `step` moves each of them by at most one token.

In: sequences. Out: (sequence, piece) pairs. Admission is in order of arrival. A prefix that any slot holds, of a sequence
running or gone, is not read again: a new sequence takes the free slot that knows most of its prompt and copies what another
knows beyond that. So a system prompt, or one prompt asked 8 times, is read once. Knows nothing of threads, callers or text.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from demeanor.engine import sampling
from demeanor.engine.request import Piece
from demeanor.engine.sequence import Sequence
from demeanor.errors import EngineError

if TYPE_CHECKING:
    from demeanor.model.cache import KVCache
    from demeanor.model.llama import Llama

READ_PER_STEP = 256  # prompt tokens read between two decoding steps, so that a long prompt does not stall the others
WORTH_COPYING = 8    # tokens; a copy costs about as much as reading so many


class Batch:
    """A decode loop without a loop: `add`, `drop`, and `step` while `busy`."""

    def __init__(self, model: Llama, cache: KVCache, num_slots: int) -> None:
        self._model, self._cache = model, cache
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []                           # in order of admission
        self._free: list[int] = list(range(num_slots))               # the one that has been free longest first
        self._contents: list[list[int]] = [[] for _ in range(num_slots)]  # tokens whose keys and values each slot holds

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

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
        """Admit, decode one token for everyone who has read their prompt, read some more prompt; return the new pieces."""
        while self._free and self._waiting:
            self._admit(self._waiting.popleft())
        decoding = sorted((s for s in self._running if not s.reading), key=lambda s: s.slot)  # all slots in order: no gathering
        hidden = [self._decode(decoding)] if decoding else []
        arrived, last = self._read([s for s in self._running if s.reading])
        speaking = decoding + arrived
        if not speaking:
            return []
        logits_NV = F.linear(torch.cat([*hidden, *last]), self._model.head()).float()
        pieces = _speak(speaking, logits_NV)
        for sequence in speaking:
            if sequence.finished:
                self._release(sequence)
        return pieces

    def _admit(self, sequence: Sequence) -> None:
        prompt = sequence.request.tokens
        slot = max(self._free, key=lambda free: _shared(self._contents[free], prompt))  # of equals, the longest free
        self._free.remove(slot)
        sequence.slot = slot
        sequence.num_read = min(_shared(self._contents[slot], prompt), len(prompt) - 1)  # its last hidden state is needed
        del self._contents[slot][sequence.num_read:]
        self._running.append(sequence)

    def _borrow(self, sequence: Sequence) -> None:
        """Copy from another slot what it knows of this prompt beyond what has been read."""
        prompt = sequence.request.tokens
        source = max(range(len(self._contents)), key=lambda slot: _shared(self._contents[slot], prompt))
        known = min(_shared(self._contents[source], prompt), len(prompt) - 1)
        if known >= sequence.num_read + WORTH_COPYING:
            self._cache.copy(source, sequence.slot, known)
            self._contents[sequence.slot] = list(prompt[:known])
            sequence.num_read = known

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free.append(sequence.slot)

    def _decode(self, sequences: list[Sequence]) -> Tensor:
        """Feed everyone's newest token: hidden_ND."""
        device = self._model.head().device
        for sequence in sequences:
            self._contents[sequence.slot].append(sequence.last)
        tokens_N = torch.tensor([s.last for s in sequences], device=device)
        slots_N = torch.tensor([s.slot for s in sequences], device=device)
        positions_N = torch.tensor([s.num_read for s in sequences], device=device)
        for sequence in sequences:
            sequence.num_read += 1
        return self._model.step(tokens_N, slots_N, positions_N, self._cache)

    def _read(self, sequences: list[Sequence]) -> tuple[list[Sequence], list[Tensor]]:
        """Read up to READ_PER_STEP prompt tokens, first come first served; return who is done and the last hidden_1D of each."""
        device, left = self._model.head().device, READ_PER_STEP
        arrived, last = [], []
        for sequence in sequences:
            if not left:
                break
            self._borrow(sequence)
            start = sequence.num_read
            chunk = sequence.request.tokens[start:start + left]
            hidden_TD = self._model.prefill(torch.tensor(chunk, device=device), sequence.slot, start, self._cache)
            self._contents[sequence.slot].extend(chunk)
            sequence.num_read += len(chunk)
            left -= len(chunk)
            if not sequence.reading:
                arrived.append(sequence)
                last.append(hidden_TD[-1:])
        return arrived, last


def _speak(sequences: list[Sequence], logits_NV: Tensor) -> list[tuple[Sequence, Piece]]:
    """Choose one token per row and hand it to its sequence; a batch of greedy requests costs one argmax."""
    settings = [s.request.decoding for s in sequences]
    tokens_N = sampling.greedy(logits_NV)
    rows = [i for i, setting in enumerate(settings) if setting.temperature > 0]
    if rows:
        uniform_NV = torch.stack([sequences[i].noise(logits_NV.shape[-1]) for i in rows]).to(logits_NV.device)
        temperature_N = logits_NV.new_tensor([settings[i].temperature for i in rows])
        top_p_N = logits_NV.new_tensor([settings[i].top_p for i in rows])
        tokens_N[rows] = sampling.draw(logits_NV[rows], temperature_N, top_p_N, uniform_NV)
    logprobs = sampling.token_logprobs(logits_NV, tokens_N).tolist()
    if any(map(math.isnan, logprobs)):
        raise EngineError("the model's logits are not numbers (NaN): its weights are broken")
    alternatives = _alternatives(logits_NV, [setting.top_logprobs or 0 for setting in settings])
    return [(sequence, sequence.say(token, logprob, others))
            for sequence, token, logprob, others in zip(sequences, tokens_N.tolist(), logprobs, alternatives)]


def _alternatives(logits_NV: Tensor, wanted: list[int]) -> list[list[tuple[int, float]]]:
    """Return the `wanted` most likely (token, logprob) pairs of each row; rows that want none cost nothing."""
    found: list[list[tuple[int, float]]] = [[] for _ in wanted]
    rows = [i for i, k in enumerate(wanted) if k]
    if rows:
        logprobs_NK, tokens_NK = sampling.top_logprobs(logits_NV[rows], max(wanted))
        for i, tokens, logprobs in zip(rows, tokens_NK.tolist(), logprobs_NK.tolist()):
            found[i] = list(zip(tokens, logprobs))[:wanted[i]]
    return found


def _shared(first: list[int], second: tuple[int, ...]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
