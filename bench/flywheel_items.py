"""Fresh items for the flywheel: the suite's behaviors drawn again, none of them an item of the suite, nor of another set.

Out: items of the suite's ports, verbs and words in other combinations. Where the suite has every combination there is, the same question
stands behind another opening.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from demeanor.core.types import Item, Messages
from demeanor.world import lexicon as say
from demeanor.world.behaviour import AXES


def fresh(name: str, draws: int, without: Iterable[Item]) -> list[Item]:
    """Draw the suite so many times anew; always the same for a name."""
    taken = {item.messages for item in without}
    found: list[Item] = []
    for number in range(draws):
        for axis, make in AXES:
            rng = random.Random(f"flywheel/{name}/{number}/{axis}")
            for item in make(rng, axis):
                messages = next(
                    (m for m in (item.messages, *opened(item.messages, rng)) if m not in taken), None
                )
                if messages is None:
                    continue
                taken.add(messages)
                found.append(replace(item, id=f"{name}-{axis}-{len(found)}", messages=messages, twin=None))
    return found


def opened(messages: Messages, rng: random.Random) -> list[Messages]:
    """The conversation with each of a few openings before its last question, in an order by chance."""
    *earlier, last = messages
    openings = rng.sample(say.CHAT, len(say.CHAT))
    return [(*earlier, replace(last, content=f"{text} {last.content}")) for text in openings]
