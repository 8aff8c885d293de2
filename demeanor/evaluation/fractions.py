"""Fewer cells than all: regular two-level fractions of the switches, crossed with every stage of the weights, and what they confound.

In: a Game and a resolution. Out: a Plan: the cells to measure, how a contrast of all cells is read off them, and the aliases. Missing
cells are filled by least squares on the model of the resolution: V has main effects, pairs and stage x switch; IV main effects and
stage x switch. Source: Box & Hunter 1961.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np

from demeanor.errors import DemeanorError
from demeanor.evaluation.shapley import Cell, Game, Weights
from demeanor.evaluation.statistics import Floats

Resolution: TypeAlias = Literal["full", "V", "IV"]
LENGTH = {"IV": 4, "V": 5}
LONGEST = 3
"""Aliases of main effects are told up to this many letters; longer ones hardly ever act."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cells are measured, and how contrasts over all cells are estimated from them."""

    about: str
    cells: tuple[Cell, ...]
    aliases: tuple[str, ...]
    spread_AM: Floats | None
    """Row per cell of the game, column per measured cell: what its estimated value takes from that; None: all are measured."""
    pairs: bool = True
    """Whether interactions of two switches can be estimated."""

    def weights(self, game: Game, wanted: Weights) -> Weights:
        """The contrast over measured cells that estimates a contrast over all."""
        if self.spread_AM is None:
            return wanted
        wanted_A = np.array([wanted.get(cell, 0.0) for cell in game.cells])
        return {cell: float(w) for cell, w in zip(self.cells, wanted_A @ self.spread_AM)}


def plan(game: Game, resolution: Resolution = "full") -> Plan:
    """All cells, or a fraction of the given resolution; raises DemeanorError where no smaller fraction has it."""
    count = len(game.switches)
    if resolution == "full":
        return Plan(f"full factorial, {len(game.cells)} cells", tuple(game.cells), (), None)
    base, added = generators(count, LENGTH[resolution])
    if not added:
        raise DemeanorError(
            f"--fraction {resolution}: {count} switches have no smaller design of resolution {resolution}; "
            "leave --fraction out"
        )
    subsets = [_subset(game.switches, base, added, run) for run in range(2**base)]
    cells = tuple((stage, on) for on in subsets for stage in range(len(game.chain)))
    pairs = resolution == "V"
    measured_MT, all_AT = _model(game, cells, pairs), _model(game, game.cells, pairs)
    words = defining(base, added)
    made = ", ".join(
        f"{game.switches[base + n]} = {_name(game.switches, mask)}" for n, mask in enumerate(added)
    )
    about = (
        f"2^({count}-{len(added)}) fraction of resolution {resolution} x {len(game.chain)} stages, {len(cells)} of {len(game.cells)} "
        f"cells ({made})"
    )
    spread_AM = np.asarray(all_AT @ np.linalg.pinv(measured_MT), dtype=float)
    return Plan(about, cells, tuple(_aliases(game.switches, words, pairs)), spread_AM, pairs)


def generators(count: int, length: int) -> tuple[int, list[int]]:
    """The fewest base factors whose 2^base runs carry `count` factors with no defining word shorter than `length`.

    Added factor n is the product of the base factors in bit mask `added[n]`.
    """
    for base in range(1, count):
        masks = sorted(
            (m for m in range(2**base) if m.bit_count() >= length - 1), key=lambda m: -m.bit_count()
        )
        if (found := _extend([], {0: 0}, masks, count - base, length)) is not None:
            return base, found
    return count, []


def _extend(
    chosen: list[int], products: dict[int, int], masks: Sequence[int], left: int, length: int
) -> list[int] | None:
    """Add `left` more generators; `products` has each product of chosen ones with the fewest of them that make it."""
    if left == 0:
        return chosen
    for n, mask in enumerate(masks):
        new = {product ^ mask: size + 1 for product, size in products.items()}
        if all(product.bit_count() + size >= length for product, size in new.items()) and not (
            new.keys() & products.keys()
        ):
            found = _extend([*chosen, mask], products | new, masks[n + 1 :], left - 1, length)
            if found is not None:
                return found
    return None


def defining(base: int, added: Sequence[int]) -> list[int]:
    """Every word of the defining relation, as a bit mask over all factors."""
    letters = [mask | 1 << (base + n) for n, mask in enumerate(added)]
    words = []
    for size in range(1, len(letters) + 1):
        for some in combinations(letters, size):
            word = 0
            for letter in some:
                word ^= letter
            words.append(word)
    return words


def _subset(names: Sequence[str], base: int, added: Sequence[int], run: int) -> frozenset[str]:
    """The switches that are on in a run; a product of factors is on where an odd number of signs says so (the run of all on is there)."""
    on = [bool(run >> i & 1) for i in range(base)]
    on += [(sum(not on[i] for i in range(base) if mask >> i & 1) % 2) == 0 for mask in added]
    return frozenset(name for name, is_on in zip(names, on) if is_on)


def _model(game: Game, cells: Sequence[Cell], pairs: bool) -> Floats:
    """The model matrix: stage (as indicators), switches, stage x switch, and pairs of switches."""
    rows = []
    for stage, on in cells:
        stages = [1.0] + [float(stage == s) for s in range(1, len(game.chain))]
        signs = [1.0 if name in on else -1.0 for name in game.switches]
        rows.append(
            [
                *stages,
                *(a * b for a in stages for b in signs),
                *((a * b for a, b in combinations(signs, 2)) if pairs else ()),
            ]
        )
    return np.array(rows, dtype=float)


def _name(names: Sequence[str], mask: int) -> str:
    return " x ".join(name for i, name in enumerate(names) if mask >> i & 1)


def _aliases(names: Sequence[str], words: Sequence[int], pairs: bool) -> list[str]:
    """What each estimated effect cannot be told from: short products of other switches."""
    terms = [1 << i for i in range(len(names))] + (
        [1 << i | 1 << j for i, j in combinations(range(len(names)), 2)] if pairs else []
    )
    found = []
    for term in terms:
        same = sorted(
            (w ^ term for w in words if (w ^ term).bit_count() <= LONGEST), key=lambda m: (m.bit_count(), m)
        )
        if same:
            found.append(f"{_name(names, term)} = {', '.join(_name(names, m) for m in same)}")
    return found
