"""The price table of a stack: `serve.prices`, a mapping in stack.yaml or a YAML file beside it.

In: a checked declaration and its folder. Out: prices by name, and under which names the price of each model that may
answer can stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from demeanor.core.errors import Problem, SpecError
from demeanor.core.files import read_yaml
from demeanor.core.registry import Spec, parse
from demeanor.stack.schema import StackSpec
from demeanor.stack.upstreams import Price, Remote, upstream_name


class PriceFile(Spec):
    """A file of prices."""

    prices: dict[str, Price] = Field(min_length=1)


def problems(spec: StackSpec, root: Path) -> list[Problem]:
    """Return every mistake in the file of prices, if there is one."""
    try:
        table(spec, root)
    except SpecError as error:
        return list(error.problems)
    return []


def table(spec: StackSpec, root: Path) -> Mapping[str, Price]:
    """Return the stack's prices; empty if it names none. Raises SpecError with every mistake of their file."""
    given = spec.serve.prices
    if not isinstance(given, str):
        return given or {}
    path = root / given
    found, wrong = parse(PriceFile, read_yaml(path), str(path))
    if found is None:
        raise SpecError(wrong)
    return found.prices


def names(spec: StackSpec, weights: str) -> list[tuple[str, ...]]:
    """Return for each model that may answer the names of its price: upstream name, model id; or the weights, then
    the stack's name."""
    base = spec.weights.base
    if isinstance(base, Remote):
        return [(upstream_name(each), each.model) for each in base.upstreams]
    return [(weights, spec.name)]
