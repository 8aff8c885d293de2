"""Several answers to each prompt, drawn from variants of a stack, for people or judges to compare.

In: variants as Responds, prompts, how many answers, decoding, a seed. Out: distinct answers with their model, stack key, seed and
log-probabilities. An answer depends on its prompt, its number and the seed alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from demeanor.core.errors import EngineError, UsageError
from demeanor.core.types import Completion, Decoding, Messages, Respond, Text, ToolSpec, Turn, complete
from demeanor.evaluation.experiment import at_once
from demeanor.evaluation.runtime import Services
from demeanor.stack.stack import Stack, decoding_of, digest
from demeanor.stack.upstreams import Remote

TRIES = 4
CONCURRENCY = 16


class SampledVariant(NamedTuple):
    """What answers: a model id, its stack key, and the callable."""

    model: str
    stack_key: str
    respond: Respond


@dataclass(frozen=True, slots=True)
class DrawnAnswer:
    """One answer; `logprobs` (nats) of its tokens, empty for a model on another server, which is not asked for them."""

    text: str
    model: str
    stack_key: str
    seed: int
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PromptToSample:
    """What is answered; `id` is a hash of it."""

    id: str
    messages: Messages
    tools: tuple[ToolSpec, ...] = ()
    source: str = ""


async def sample(
    variants: Sequence[SampledVariant],
    prompts: Sequence[PromptToSample],
    count: int,
    decoding: Decoding,
    seed: int,
) -> list[list[DrawnAnswer]]:
    """Draw up to `count` distinct answers to each prompt, from the variants in turn; fewer where they repeat themselves.

    Raises EngineError if every prompt fails.
    """
    errors: list[str] = []

    async def one(prompt: PromptToSample) -> list[DrawnAnswer]:
        try:
            return await _answers(variants, prompt, count, decoding, seed)
        except Exception as error:  # one prompt's failure is its own
            errors.append(f"{prompt.source or prompt.id}: {error}")
            return []

    found = await at_once("sampling answers", [one(p) for p in prompts], CONCURRENCY, lambda: len(errors))
    if prompts and len(errors) == len(prompts):
        raise EngineError(f"no prompt could be answered; the first: {errors[0]}")
    for error in errors[:3]:
        print(f"left out: {error}")
    if len(errors) > 3:
        print(f"left out: {len(errors) - 3} more prompts")
    return found


async def _answers(
    variants: Sequence[SampledVariant], prompt: PromptToSample, count: int, decoding: Decoding, seed: int
) -> list[DrawnAnswer]:
    found: dict[str, DrawnAnswer] = {}
    for number in range(count):
        variant = variants[number % len(variants)]
        for attempt in range(TRIES):
            drawn = int(digest([seed, prompt.id, number, attempt]), 16) % 2**31
            turn = Turn(
                prompt.messages,
                replace(decoding, seed=drawn),
                prompt.tools,
                id=f"label-{prompt.id}-{number}-{attempt}",
                user="labelling",
            )
            done = await complete(variant.respond, turn)
            text = done.text.strip()
            if text and text not in found:
                found[text] = DrawnAnswer(text, variant.model, variant.stack_key, drawn, _logprobs(done))
                break
            if decoding.greedy:
                break
    return list(found.values())


def _logprobs(done: Completion) -> tuple[float, ...]:
    return tuple(x.logprob for e in done.events if isinstance(e, Text) for x in e.logprobs)


def sample_stack(
    stack: Stack,
    services: Services,
    model_ids: Sequence[str],
    prompts: Sequence[PromptToSample],
    count: int,
    *,
    temperature: float,
    seed: int,
) -> tuple[list[Stack], list[list[DrawnAnswer]]]:
    """Draw answers from variants of a stack; returns the variants and the answers. Raises UsageError for an unknown variant."""
    variants = [stack.resolve(name) for name in model_ids] or [stack]
    if len({v.model_id for v in variants}) < len(variants):
        raise UsageError("--variants: names one variant twice")
    elsewhere = isinstance(stack.spec.weights.base, Remote)  # some servers refuse logprobs beside tools
    decoding = replace(decoding_of(stack), temperature=temperature, top_logprobs=None if elsewhere else 0)
    runtime = services.open(stack)
    try:
        runtime.warm({v.serve for v in variants})
        asked = [SampledVariant(v.model_id, v.key(), runtime.respond(v)) for v in variants]
        return variants, asyncio.run(sample(asked, prompts, count, decoding, seed))
    finally:
        runtime.close()
