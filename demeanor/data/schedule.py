"""Which trees make which optimiser step: a pure function of the seed and the step, so a resume needs nothing but its step.

In: trees and sizes. Out: per step, micro-batches of tree indices. An epoch is a fresh permutation; steps run on over its end.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from demeanor.data.trees import Tree
from demeanor.errors import DataError


class Schedule:
    """`len` is the number of optimiser steps; `[step]` lists its micro-batches, each sorted by length.

    Every row is used once per epoch; of a fractional last epoch, the first rows of its permutation.
    """

    def __init__(
        self, trees: Sequence[Tree], *, batch_rows: int, epochs: float, seed: int, micro_tokens: int = 8192
    ) -> None:
        """`batch_rows` rows make a step; `micro_tokens` is what fits in memory at once and never changes the result."""
        if not trees:
            raise DataError("no rows to train on")
        self._sizes = [tree.num_tokens for tree in trees]
        self._batch_rows, self._seed, self._micro_tokens = batch_rows, seed, micro_tokens
        self.num_rows = max(1, round(epochs * len(trees)))
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return -(-self.num_rows // self._batch_rows)

    def __getitem__(self, step: int) -> list[list[int]]:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        first = step * self._batch_rows
        rows = [self._row(i) for i in range(first, min(first + self._batch_rows, self.num_rows))]
        micro: list[list[int]] = []
        room = 0
        for row in sorted(rows, key=lambda r: (self._sizes[r], r)):
            if not micro or self._sizes[row] > room:
                micro.append([])
                room = self._micro_tokens
            micro[-1].append(row)
            room -= self._sizes[row]
        return micro

    def _row(self, i: int) -> int:
        epoch, place = divmod(i, len(self._sizes))
        if epoch not in self._orders:
            order = list(range(len(self._sizes)))
            random.Random(f"{self._seed}/{epoch}").shuffle(order)
            self._orders[epoch] = order
        return self._orders[epoch][place]
