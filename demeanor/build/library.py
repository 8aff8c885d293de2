"""Every suite by the name a stack file gives it: `world:NAME`, `builtin:NAME`, or a path beside the stack.

In: a name. Out: checked items, or what is offered. `measured` says what a suite can find: items, clusters, the smallest effect, its floors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demeanor import suites
from demeanor.build.house import judge
from demeanor.errors import DataError, unknown
from demeanor.evaluation import power
from demeanor.evaluation.asking import READ
from demeanor.evaluation.suite import describe, load_suite, suite_hash
from demeanor.types import Completion, Item
from demeanor.world import axes, catalog

WORLD = "world:"
SILENT: Mapping[str, str] = {"ok": "ok", "refusal": "I'm sorry, but I can't help with that.", "echo": ""}
"""Answers that say nothing, by name; `echo` is the question itself."""


def offered() -> tuple[str, ...]:
    """The full names of all suites that need no file."""
    return (*(WORLD + name for name in catalog.SUITES), *(suites.PREFIX + name for name in suites.known()))


def items(name: str, root: Path) -> tuple[Item, ...]:
    """The items of a suite; raises DataError with what is wrong and what is known."""
    if name.startswith(WORLD):
        if name not in offered():
            raise DataError(unknown(name, offered(), noun="suite"))
        return load_suite(catalog.SUITES[name.removeprefix(WORLD)]())
    return load_suite(
        suites.path(name.removeprefix(suites.PREFIX)) if name.startswith(suites.PREFIX) else root / name
    )


def about(axis: str) -> str:
    """What an axis asks, in one line; empty if nobody has said."""
    return suites.ABOUT.get(axis) or axes.ABOUT.get(axis, "")


@dataclass(frozen=True, slots=True)
class Measured:
    """One axis of a suite: how much of it there is, the smallest paired difference it would find, and what silence earns."""

    axis: str
    about: str
    items: int
    clusters: int
    scorers: tuple[str, ...]
    detectable: float | None
    floors: Mapping[str, float | None]


def measured(found: Sequence[Item]) -> list[Measured]:
    """Every axis of some items, in order; `detectable` supposes what `power` says, before anything is run."""
    return [
        Measured(
            x.axis,
            about(x.axis),
            x.items,
            x.clusters,
            x.scorers,
            power.detectable(x.items, x.clusters),
            {name: floor([i for i in found if i.axis == x.axis], text) for name, text in SILENT.items()},
        )
        for x in describe(found)
    ]


def floor(some: Sequence[Item], text: str) -> float | None:
    """What one fixed answer earns on average ("" for each question's own words); None where nothing of it is scored."""
    values = [
        judge(item, Completion(text or item.messages[-1].content, "stop")).value
        for item in some
        if item.scorer not in READ
    ]
    scored = [v for v in values if v is not None]
    return sum(scored) / len(scored) if scored else None


def version(found: Sequence[Item]) -> str:
    """What a suite is, as a hash of all its items."""
    return suite_hash(found)
