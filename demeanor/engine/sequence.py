"""One request in flight: how far its prompt is read, what it has said, and when it ends.

In: a request, then one token after another. Out: pieces. Knows nothing of the model, the batch or threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from demeanor.engine import sampling
from demeanor.engine.detokenize import Decode, Detokenizer, scan
from demeanor.engine.request import Piece, Request
from demeanor.types import FinishReason


class Sequence:
    """State of a request while it holds (or waits for) a slot; `num_read` of its tokens are in the KV cache."""

    def __init__(self, request: Request, limit: int, decode: Decode) -> None:
        self.request = request
        self.limit = limit                       # tokens it may say: max_tokens, clipped by the context
        self.slot = -1
        self.num_read = 0
        self.last = -1                           # newest token; not yet in the cache
        self._num_said = 0
        self._text = Detokenizer(decode)
        self._held = ""
        self._finished = False
        self._generator = _generator(request.decoding.seed) if request.decoding.temperature > 0 else None

    @property
    def reading(self) -> bool:
        """Is a part of the prompt not yet in the cache?"""
        return self.num_read < len(self.request.tokens)

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
        text, finish = self._advance(token)
        self._finished = finish is not None
        return Piece(token, text, logprob, top, finish, own)

    def _advance(self, token: int) -> tuple[str, FinishReason | None]:
        """Text that is certain after this token, and why the answer ends here if it does."""
        if token in self.request.stop_tokens:
            return self._rest("stop")
        new, stops = self._text.feed(token), self.request.decoding.stop
        if stops:
            new, self._held, stopped = scan(self._held + new, stops)
            if stopped:
                return new, "stop"
        if self._num_said < self.limit:
            return new, None
        rest, finish = self._rest("length")
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
