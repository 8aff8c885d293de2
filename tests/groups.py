"""The matrices of a model that are in groups, for tests."""

from __future__ import annotations

from torch import nn

from demeanor.model.grouped import Grouped
from demeanor.model.grouped_modules import matrices


def grouped_matrices(model: nn.Module) -> dict[str, Grouped]:
    """Return every matrix in groups by its name (`... .weight`); one that is still in its file is read."""
    found = {
        name: x if isinstance(x, Grouped) else x.read() for name, x in matrices(model).items() if x.format
    }
    return {name: x for name, x in found.items() if isinstance(x, Grouped)}
