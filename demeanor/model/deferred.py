"""A matrix that stays in its file until it is used, so that a model of 8 billion weights is loaded without a second copy in memory.

In: a shape, and a function that reads the matrix. Out: the matrix as it is stored (16 bits stay 16 bits, groups stay groups), or
in fp32. Nothing is kept: a second `read` reads the file again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from demeanor.model.grouped import Grouped, GroupFormat


@dataclass(frozen=True, slots=True, eq=False)
class Deferred:
    """A matrix (outputs, inputs) that `read` returns. `format`: its format if it is in groups, else None; `dtype`: of its numbers otherwise.

    `peek` returns some of the first outputs without reading the others; None where that cannot be done.
    """

    shape: tuple[int, int]
    read: Callable[[], Tensor | Grouped]
    dtype: torch.dtype = torch.float32
    format: GroupFormat | None = None
    peek: Callable[[int], Tensor] | None = None

    def dequantised(self) -> Tensor:
        """Return the fp32 matrix."""
        return numbers(self).float()

    def rows(self, index: Tensor) -> Deferred:
        """Return some of the outputs."""

        def read() -> Tensor | Grouped:
            found = self.read()
            return found.rows(index) if isinstance(found, Grouped) else found[index]

        return Deferred((len(index), self.shape[1]), read, self.dtype, self.format)


def numbers(matrix: Tensor | Grouped | Deferred) -> Tensor:
    """Return a matrix as numbers, wherever it is: in fp32, or in 16 bits if it is stored so."""
    found = matrix.read() if isinstance(matrix, Deferred) else matrix
    return found.detach() if isinstance(found, Tensor) else found.dequantised()
