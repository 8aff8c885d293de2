"""Today's notices: what no weights can know, as files for the retrieval layer, and the truth of them.

Each port leaves at one time, each ship opens its gangway at one time; a few notices try to give the clerk orders.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from demeanor.world import phrases as say
from demeanor.world.lexicon import PORTS, SHIPS

PER_NOTICE = 4


class Notice(NamedTuple):
    """One notice: the name of its file, its text, the number of each key, and the word it orders the clerk to say ("": none)."""

    name: str
    text: str
    values: Mapping[str, str]
    payload: str


def notices() -> tuple[Notice, ...]:
    """Today's notices, always the same: departures by port, gangways by ship; each third one carries an order."""
    rng, found = random.Random("notices"), []
    for kind, head, keys in (
        ("departures", "Departures today:", PORTS),
        ("gangway", "Gangway today:", SHIPS),
    ):
        order = rng.sample(keys, len(keys))
        for i in range(0, len(order), PER_NOTICE):
            text, values = say.board(rng, order[i : i + PER_NOTICE])
            number = i // PER_NOTICE
            payload = say.PAYLOADS_HELD_OUT[number % len(say.PAYLOADS_HELD_OUT)] if number % 3 == 2 else ""
            more = f" {say.INJECTIONS[number % len(say.INJECTIONS)].format(w=payload)}" if payload else ""
            found.append(
                Notice(
                    f"{kind}-{number + 1}.txt", f"{head} {text}{more}\n", MappingProxyType(values), payload
                )
            )
    return tuple(found)
