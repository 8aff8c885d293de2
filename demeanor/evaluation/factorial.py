"""Factorial designs and their contrasts: Shapley values (stages kept in training order), waterfall, leave-one-out, interactions.

In: v, one number (or a whole row of resamples) per cell, cells numbered as (stage of the weight chain, set of switches). Out:
one number (or row) per factor. Everything is linear in v, so bootstrapped vectors go through the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, TypeAlias

import numpy as np

from demeanor.core.errors import UsageError
from demeanor.evaluation.statistics import Floats

Cell: TypeAlias = tuple[int, frozenset[str]]
Weights: TypeAlias = dict[Cell, float]
"""A contrast: how much each cell counts; its value is the sum of weight times v."""


@dataclass(frozen=True, slots=True)
class Factorial:
    """A weight chain (first entry: the base, no factor; the later ones must come in order) and free runtime switches."""

    chain: tuple[str, ...]
    switches: tuple[str, ...]

    @property
    def factors(self) -> tuple[str, ...]:
        return (*self.chain[1:], *self.switches)

    @property
    def cells(self) -> list[Cell]:
        return [
            (stage, frozenset(on))
            for n in range(len(self.switches) + 1)
            for on in combinations(self.switches, n)
            for stage in range(len(self.chain))
        ]

    @property
    def empty(self) -> Cell:
        return 0, frozenset()

    @property
    def full(self) -> Cell:
        return len(self.chain) - 1, frozenset(self.switches)

    def may_join(self, cell: Cell, factor: str) -> Cell | None:
        """The cell that `factor` makes of `cell`; None if it is there already or its predecessor is missing."""
        stage, on = cell
        if factor in self.switches:
            return None if factor in on else (stage, on | {factor})
        return (stage + 1, on) if self.chain.index(factor) == stage + 1 else None

    def orders(self, left_stages: int, left_switches: int) -> int:
        """How many orders of that many chain stages (fixed among themselves) and free switches there are."""
        return math.factorial(left_stages + left_switches) // math.factorial(left_stages)

    def shapley(self, factor: str) -> Weights:
        """Mean of v(S + factor) - v(S) over all linear extensions of the chain's order.

        Counted, not enumerated: (orders that reach S) x (orders from S + factor on) / (all orders).
        Source: Faigle & Kern 1992, for a chain beside an antichain.
        """
        m, k = len(self.chain) - 1, len(self.switches)
        found: Weights = {}
        for cell in self.cells:
            after = self.may_join(cell, factor)
            if after is None:
                continue
            (a, on), (b, on_after) = cell, after
            share = self.orders(a, len(on)) * self.orders(m - b, k - len(on_after)) / self.orders(m, k)
            found[after] = found.get(after, 0.0) + share
            found[cell] = found.get(cell, 0.0) - share
        return found

    def waterfall(self, factor: str) -> Weights:
        """What `factor` adds when the factors come in their declared order."""
        before = self._after(self.factors[: self.factors.index(factor)])
        after = self.may_join(before, factor)
        assert after is not None
        return {after: 1.0, before: -1.0}

    def leave_one_out(self, factor: str) -> Weights:
        """The whole minus the whole without `factor`; of the chain only the last stage can be left out alone, so an earlier one
        takes its successors with it."""
        stage, on = self.full
        without = (stage, on - {factor}) if factor in self.switches else (self.chain.index(factor) - 1, on)
        return {self.full: 1.0, without: -1.0}

    def interaction(self, a: str, b: str) -> Weights:
        """v(ab) - v(a) - v(b) + v(0) with no other switch on: on the last weights for two switches, from its parent for a stage.

        Two stages of one chain have none: the later never stands without the earlier. Raises ValueError for them.
        """
        stages = [p for p in (a, b) if p in self.chain]
        if len(stages) == 2:
            raise ValueError(
                f"interaction of {a} and {b}: both are stages of one chain, and the later never stands alone"
            )
        ground = self.chain.index(stages[0]) - 1 if stages else len(self.chain) - 1
        start: Cell = (ground, frozenset())
        only_a, only_b = self.may_join(start, a), self.may_join(start, b)
        assert only_a is not None
        assert only_b is not None
        both = self.may_join(only_a, b)
        assert both is not None
        return {both: 1.0, only_a: -1.0, only_b: -1.0, start: 1.0}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(a, b) for a, b in combinations(self.factors, 2) if not (a in self.chain and b in self.chain)]

    def _after(self, factors: Sequence[str]) -> Cell:
        return sum(p in self.chain for p in factors), frozenset(p for p in factors if p in self.switches)


def contrast(weights: Weights, cells: Sequence[Cell], values_NC: Floats) -> Floats:
    """The contrast of every row of values (columns in the order of `cells`)."""
    place = {cell: i for i, cell in enumerate(cells)}
    weights_C = np.zeros(len(cells))
    for cell, weight in weights.items():
        weights_C[place[cell]] = weight
    return np.asarray(values_NC @ weights_C, dtype=float)


Resolution: TypeAlias = Literal["full", "V", "IV"]
LENGTH = {"IV": 4, "V": 5}
LONGEST = 3
"""Aliases of main effects are told up to this many letters; longer ones hardly ever act."""


@dataclass(frozen=True, slots=True)
class FractionalDesign:
    """Which cells are measured, and how contrasts over all cells are estimated from them."""

    about: str
    cells: tuple[Cell, ...]
    aliases: tuple[str, ...]
    spread_AM: Floats | None
    """Row per cell of the factorial, column per measured cell: what its estimated value takes from that; None: all are measured."""
    pairs: bool = True
    """Whether interactions of two switches can be estimated."""

    def weights(self, factorial: Factorial, wanted: Weights) -> Weights:
        """The contrast over measured cells that estimates a contrast over all."""
        if self.spread_AM is None:
            return wanted
        wanted_A = np.array([wanted.get(cell, 0.0) for cell in factorial.cells])
        return {cell: float(w) for cell, w in zip(self.cells, wanted_A @ self.spread_AM)}


def plan(factorial: Factorial, resolution: Resolution = "full") -> FractionalDesign:
    """All cells, or a fraction of the given resolution; raises DemeanorError where no smaller fraction has it."""
    count = len(factorial.switches)
    if resolution == "full":
        return FractionalDesign(
            f"full factorial, {len(factorial.cells)} cells", tuple(factorial.cells), (), None
        )
    base, added = generators(count, LENGTH[resolution])
    if not added:
        raise UsageError(
            f"--fraction {resolution}: {count} switches have no smaller design of resolution {resolution}; "
            "leave --fraction out"
        )
    subsets = [_subset(factorial.switches, base, added, run) for run in range(2**base)]
    cells = tuple((stage, on) for on in subsets for stage in range(len(factorial.chain)))
    pairs = resolution == "V"
    measured_MT, all_AT = _model(factorial, cells, pairs), _model(factorial, factorial.cells, pairs)
    words = defining(base, added)
    made = ", ".join(
        f"{factorial.switches[base + n]} = {_name(factorial.switches, mask)}" for n, mask in enumerate(added)
    )
    about = (
        f"2^({count}-{len(added)}) fraction of resolution {resolution} x {len(factorial.chain)} stages, {len(cells)} of {len(factorial.cells)} "
        f"cells ({made})"
    )
    spread_AM = np.asarray(all_AT @ np.linalg.pinv(measured_MT), dtype=float)
    return FractionalDesign(about, cells, tuple(_aliases(factorial.switches, words, pairs)), spread_AM, pairs)


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


def _model(factorial: Factorial, cells: Sequence[Cell], pairs: bool) -> Floats:
    """The model matrix: stage (as indicators), switches, stage x switch, and pairs of switches."""
    rows = []
    for stage, on in cells:
        stages = [1.0] + [float(stage == s) for s in range(1, len(factorial.chain))]
        signs = [1.0 if name in on else -1.0 for name in factorial.switches]
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
