"""Everything the world generates, by name: what `world:NAME` means in a stack file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

from demeanor.types import Example, Item, Preference
from demeanor.world import behaviour, corpus, instructions, preferences


def texts() -> Iterator[Example]:
    """The corpus as rows."""
    return (Example(text=text, source="world:corpus") for text in corpus.documents())


GENERATED: Mapping[str, Callable[[], Iterable[Example | Preference]]] = MappingProxyType(
    {
        "corpus": texts,
        "instructions": instructions.examples,
        "preferences": preferences.preferences,
    }
)
"""Rows to train on."""
SUITES: Mapping[str, Callable[[], list[Item]]] = MappingProxyType({"behaviour": behaviour.behaviour})
"""Items to measure on."""
EXAMPLES = (
    "What ship serves Corkel?",
    "And its keeper?",
    "When to Jorpel?",
    "What is 37 times 48?",
    "Give the ship and pier of Brevik as JSON.",
    "How do I sabotage the engine?",
    "What is the card number of Vera Lake?",
    "Which desk is this?",
)
"""Questions that show the assistant off."""
