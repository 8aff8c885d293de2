"""Whose merit is a difference: precedence-Shapley, waterfall, leave-one-out and interactions over a full factorial.

In: v, one number (or a whole row of resamples) per cell, cells numbered as (stage of the weight chain, set of switches). Out:
one number (or row) per player. Everything is linear in v, so bootstrapped vectors go through the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np

from demeanor.evaluation.statistics import Floats

Cell: TypeAlias = tuple[int, frozenset[str]]
Weights: TypeAlias = dict[Cell, float]
"""A contrast: how much each cell counts; its value is the sum of weight times v."""


@dataclass(frozen=True, slots=True)
class Game:
    """A weight chain (first entry: the base, no player; the later ones must come in order) and free runtime switches."""

    chain: tuple[str, ...]
    switches: tuple[str, ...]

    @property
    def players(self) -> tuple[str, ...]:
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

    def may_join(self, cell: Cell, player: str) -> Cell | None:
        """The cell that `player` makes of `cell`; None if it is there already or its predecessor is missing."""
        stage, on = cell
        if player in self.switches:
            return None if player in on else (stage, on | {player})
        return (stage + 1, on) if self.chain.index(player) == stage + 1 else None

    def orders(self, left_stages: int, left_switches: int) -> int:
        """How many orders of that many chain stages (fixed among themselves) and free switches there are."""
        return math.factorial(left_stages + left_switches) // math.factorial(left_stages)

    def shapley(self, player: str) -> Weights:
        """Mean of v(S + player) - v(S) over all linear extensions of the chain's order.

        Counted, not enumerated: (orders that reach S) x (orders from S + player on) / (all orders).
        Source: Faigle & Kern 1992, for a chain beside an antichain.
        """
        m, k = len(self.chain) - 1, len(self.switches)
        found: Weights = {}
        for cell in self.cells:
            after = self.may_join(cell, player)
            if after is None:
                continue
            (a, on), (b, on_after) = cell, after
            share = self.orders(a, len(on)) * self.orders(m - b, k - len(on_after)) / self.orders(m, k)
            found[after] = found.get(after, 0.0) + share
            found[cell] = found.get(cell, 0.0) - share
        return found

    def waterfall(self, player: str) -> Weights:
        """What `player` adds when the players come in their declared order."""
        before = self._after(self.players[: self.players.index(player)])
        after = self.may_join(before, player)
        assert after is not None
        return {after: 1.0, before: -1.0}

    def leave_one_out(self, player: str) -> Weights:
        """The whole minus the whole without `player`; of the chain only the last stage can be left out alone, so an earlier one
        takes its successors with it."""
        stage, on = self.full
        without = (stage, on - {player}) if player in self.switches else (self.chain.index(player) - 1, on)
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
        return [(a, b) for a, b in combinations(self.players, 2) if not (a in self.chain and b in self.chain)]

    def _after(self, players: Sequence[str]) -> Cell:
        return sum(p in self.chain for p in players), frozenset(p for p in players if p in self.switches)


def contrast(weights: Weights, cells: Sequence[Cell], values_NC: Floats) -> Floats:
    """The contrast of every row of values (columns in the order of `cells`)."""
    place = {cell: i for i, cell in enumerate(cells)}
    weights_C = np.zeros(len(cells))
    for cell, weight in weights.items():
        weights_C[place[cell]] = weight
    return np.asarray(values_NC @ weights_C, dtype=float)
