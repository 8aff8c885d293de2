"""One request in flight: how far its prompt is read, what it has said, and when it ends.

In: a request, then one token after another. Out: pieces. Knows nothing of the model, the batch or threads.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from demeanor.engine import sampling
from demeanor.engine.detokenize import Decode, Detokenizer, scan
from demeanor.engine.request import Piece, Read, Request, draftable
from demeanor.types import FinishReason

if TYPE_CHECKING:
    from demeanor.engine.forms import Guide


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
        self._prompt: list[Read] = []
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
        self._prompt.append(Read(token, self._behind(token), logprob, top))

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
