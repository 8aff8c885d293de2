"""Sampling for training: groups of completions that share a prompt, with the log-probability of every drawn token.

In: a model, prompts as tokens, decoding settings, and the seed of each completion. Out: tokens, their log-probabilities
under the distribution they were drawn from, and what truncation kept. A completion depends on its prompt, settings and
seed only: not on the others, the slots or the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from demeanor.core.errors import ContextError, EngineError
from demeanor.core.types import Decoding, FinishReason
from demeanor.engine.forward import Forward, forward_of
from demeanor.engine.scheduler import Batch, Piece, Request, SequenceState

if TYPE_CHECKING:
    from demeanor.model.hf import ForeignModel
    from demeanor.model.llama import Llama
    from demeanor.text.tokenizer import Tokenizer

MOST_SLOTS = 32


class SampledTokens(NamedTuple):
    """One completion, the stop token included; `ended` if a stop token or stop string ended it.

    `sampled` are log-probabilities (nats) of its tokens as they were drawn. `kept` are the tokens that truncation left
    for each, ascending (empty: all); it is empty as a whole if nothing is truncated.
    """

    tokens: tuple[int, ...]
    sampled: tuple[float, ...]
    text: str
    ended: bool
    kept: tuple[tuple[int, ...], ...] = ()


def sample_groups(
    model: Llama | ForeignModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    decoding: Decoding,
    stop_tokens: frozenset[int],
    seeds: Callable[[int, int], int],
    num_slots: int = MOST_SLOTS,
) -> list[list[SampledTokens]]:
    """Draw `count` completions of each prompt, which is read once; `seeds` gives that of (prompt, completion).

    Raises EngineError if nothing is drawn (temperature 0) or if logits are changed before the draw, which training
    could not repeat; ContextError if a prompt leaves no room for an answer.
    """
    longest: int = model.config.max_position_embeddings
    _check(prompts, decoding, longest)
    if not prompts or count < 1:
        return [[] for _ in prompts]
    room = min(longest, max(map(len, prompts)) + decoding.max_tokens)
    slots = min(num_slots, count * len(prompts))
    with torch.inference_mode():
        forward = forward_of(model, slots, room)
        requests = [
            Request(tuple(p), replace(decoding, seed=seeds(n, g)), stop_tokens, recorded=True)
            for n, p in enumerate(prompts)
            for g in range(count)
        ]
        limits = [min(decoding.max_tokens, longest - len(r.tokens)) for r in requests]
        states = [SequenceState(r, limit, tokenizer.decode) for r, limit in zip(requests, limits)]
        found = [_completion(pieces) for pieces in run(forward, states, slots)]
    return [found[i : i + count] for i in range(0, len(found), count)]


def run(forward: Forward, sequences: Sequence[SequenceState], num_slots: int) -> list[list[Piece]]:
    """Decode sequences to their ends in this thread, and return the pieces of each."""
    batch, pieces = Batch(forward, num_slots), {sequence: list[Piece]() for sequence in sequences}
    for sequence in sequences:
        batch.add(sequence)
    try:
        while batch.busy:
            for sequence, delivery in batch.step():
                if isinstance(delivery, EngineError):
                    raise delivery
                pieces[sequence].append(delivery)
    finally:
        batch.prefixes.close()  # no sequence waits for memory any more, and all pages go back
    return list(pieces.values())


def _completion(pieces: Sequence[Piece]) -> SampledTokens:
    finish: FinishReason | None = pieces[-1].finish
    sampled = [piece.sampled for piece in pieces]
    kept = tuple(piece.kept for piece in pieces)
    return SampledTokens(
        tuple(piece.token for piece in pieces),
        tuple(x for x in sampled if x is not None),
        "".join(piece.text for piece in pieces),
        finish == "stop",
        kept if any(kept) else (),
    )


def _check(prompts: Sequence[Sequence[int]], decoding: Decoding, longest: int) -> None:
    if decoding.greedy:
        raise EngineError(
            f"temperature is {decoding.temperature}: nothing is drawn, so there is nothing to train on; "
            "wanted a temperature above 0"
        )
    changed = {
        "logit_bias": bool(decoding.logit_bias),
        "presence_penalty": bool(decoding.presence_penalty),
        "frequency_penalty": bool(decoding.frequency_penalty),
        "form": decoding.form is not None,
    }
    names = [name for name, given in changed.items() if given]
    if names:
        raise EngineError(
            f"{', '.join(names)}: changes logits before the draw, and training could not repeat that; wanted only "
            "temperature, top_p, top_k and min_p"
        )
    for n, prompt in enumerate(prompts):
        if not 0 < len(prompt) < longest:
            raise ContextError(
                f"prompt {n} has {len(prompt)} tokens; wanted 1 to {longest - 1}, to leave room for an answer"
            )
