"""What weights say of their own answers: how far a stage moved from its parent (KL), and how sure it is of what it answers.

In: a House and items. Out: numbers per item, for evaluation to summarise. Prompts are the items' own messages in the stage's template,
no layer around them.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from demeanor.build.house import House, decoding_of, judge
from demeanor.engine.request import Request
from demeanor.errors import ContextError
from demeanor.evaluation.frontier import Answered, Moved
from demeanor.stack import Stack
from demeanor.types import Decoding, Item, Text, Turn, complete

TOGETHER = 32


async def moved(
    house: House, variant: Stack, parent: str, items: Sequence[Item], *, seed: int = 0
) -> list[Moved]:
    """Log p(answer) under a stage minus under its parent, in nats, for one drawn answer (temperature 1) per item.

    Its mean estimates KL(stage || parent) per answer without bias. Both read the same tokens, so a parent with another template or
    tokenizer is compared at what the stage is prompted with. Items that do not fit the context are left out.
    """
    template, engine, other = (
        house.template(variant),
        house.weights(variant.serve).engine,
        house.weights(parent).engine,
    )
    limit, gate = decoding_of(house.stack).max_tokens, asyncio.Semaphore(TOGETHER)

    async def one(n: int, item: Item) -> Moved | None:
        async with gate:
            prompt = tuple(template.render(item.messages, item.tools, generate=True).tokens)
            drawn = Decoding(1.0, max_tokens=limit, seed=seed + n)
            try:
                pieces = [p async for p in engine.stream(Request(prompt, drawn, template.stop_tokens))]
                said = tuple(p.token for p in pieces)
                asked = Request((*prompt, *said), Decoding(0.0, max_tokens=0), prompt_logprobs=0)
                (read,) = [p async for p in other.stream(asked)]
            except ContextError:
                return None
            there = sum(r.logprob or 0.0 for r in read.prompt[len(prompt) :])
            return Moved(item.id, item.cluster, sum(p.logprob for p in pieces) - there, len(said))

    return [found for found in await asyncio.gather(*(one(n, item) for n, item in enumerate(items))) if found]


async def answered(house: House, variant: Stack, items: Sequence[Item]) -> list[Answered]:
    """The probability that a variant gave its own answer (the product over its tokens), and whether the answer is right.

    Greedy. Answers of which no probability came back (a layer refused or redacted, or called a tool) are left out.
    """
    respond, gate = house.respond(variant), asyncio.Semaphore(TOGETHER)
    decoding = replace(decoding_of(house.stack), temperature=0.0, top_logprobs=0, seed=0)

    async def one(item: Item) -> Answered | None:
        async with gate:
            try:
                done = await complete(
                    respond,
                    Turn(item.messages, decoding, item.tools, id=f"certainty-{item.id}", user="evaluation"),
                )
            except ContextError:
                return None
        read = [t.logprob for event in done.events if isinstance(event, Text) for t in event.logprobs]
        value = judge(item, done).value
        if done.refusal or not read or value is None:
            return None
        return Answered(item.id, min(1.0, math.exp(sum(read))), value >= 0.5, item.cluster)

    return [found for found in await asyncio.gather(*map(one, items)) if found]
