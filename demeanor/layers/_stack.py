"""The whole framework: a list of layers folded around what answers."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from demeanor.layers._kit import Kit
from demeanor.registry import Spec
from demeanor.types import Respond


def compose(layers: Sequence[tuple[Spec, ModuleType]], inner: Respond, kit: Kit) -> Respond:
    """Wrap `inner` in layers given outermost first, so that a request passes them in that order."""
    for spec, module in reversed(layers):
        inner = module.wrap(spec, inner, kit)
    return inner
