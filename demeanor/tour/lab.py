"""The bench of the tour: measures variants on a few behaviors of a stack's suites, and gives shares and paired changes.

In: a stack, Services, a folder. Out: Shares. Experiments (trials.py) only say what is compared with what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from demeanor.core.errors import UsageError
from demeanor.core.table import listed
from demeanor.core.types import Item
from demeanor.evaluation import base_prompting, statistics
from demeanor.evaluation.experiment import Experiment, in_turn, suite
from demeanor.evaluation.frontier import KlFromParent, divergence, kl_from_parent
from demeanor.evaluation.result_rows import PairedTable, Row
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.statistics import Floats
from demeanor.stack.stack import Stack
from demeanor.tour.courses import WORLD, Course
from demeanor.tour.findings import TourNumber, measured

ALL = "all"


@dataclass
class Shares:
    """Values in [0, 1] by label and axis, on the same items in the same order."""

    clusters: dict[str, list[str]]
    values: dict[str, dict[str, Floats]] = field(default_factory=dict)

    def add(self, label: str, cells: PairedTable, variant: str) -> None:
        self.values[label] = {axis: cells.values_N(variant, axis) for axis in self.clusters}

    def share(self, label: str, *axes: str) -> TourNumber:
        """The share right on some axes (default: all), each item counting once."""
        (values_N,), clusters = self._joined((label,), axes)
        return measured(statistics.mean(values_N, clusters))

    def change(self, before: str, after: str, *axes: str) -> TourNumber:
        """The mean paired change in points."""
        (before_N, after_N), clusters = self._joined((before, after), axes)
        return measured(statistics.paired(before_N, after_N, clusters), "points")

    def _joined(self, labels: Sequence[str], axes: Sequence[str]) -> tuple[list[Floats], list[str]]:
        names = axes or tuple(self.clusters)
        columns = [np.concatenate([self.values[label][axis] for axis in names]) for label in labels]
        clusters = np.array([f"{axis}/{c}" for axis in names for c in self.clusters[axis]])
        scored_N = ~np.isnan(np.stack(columns)).any(axis=0)
        return [column[scored_N] for column in columns], list(clusters[scored_N])


@dataclass(frozen=True)
class Lab:
    """Where experiments of the tour are made; `load` reads the stack with overrides as in `--set`."""

    load: Callable[[Sequence[str]], Stack]
    services: Services
    folder: Path
    limit: int | None = None
    """Items of each behavior; None: all."""
    course: Course = WORLD

    def items(self, stack: Stack, *axes: str) -> tuple[Item, ...]:
        """Items of the axes (default: all). Raises UsageError if the stack's suites lack one."""
        every = suite(stack)
        known = dict.fromkeys(item.axis for item in every)
        if missing := [axis for axis in axes if axis not in known]:
            raise UsageError(
                f"{stack.path}: its suites ask no {listed(missing)}; this chapter needs them. Take the demo's stack "
                f"(demeanor init my-desk), or add a suite with that axis. The suites have: {listed(list(known))}"
            )
        wanted = axes or tuple(known)
        some = every if self.limit is None else in_turn([every], self.limit)
        return tuple(item for item in some if item.axis in wanted)

    def measure(
        self, name: str, stack: Stack, variants: Mapping[str, Stack], items: Sequence[Item]
    ) -> Shares:
        """Measure variants of one stack, by label."""
        rows = self.rows(name, stack, variants.values(), items)
        return self.shares(items, rows, {label: v.model_id for label, v in variants.items()})

    def rows(
        self, name: str, stack: Stack, variants: Sequence[Stack] | object, items: Sequence[Item]
    ) -> list[Row]:
        with Experiment(stack, self.services, self.folder, name=name, items=items, kind="tour") as experiment:
            return experiment.measure(variants)  # type: ignore[arg-type]

    def shares(self, items: Sequence[Item], rows: Sequence[Row], variants: Mapping[str, str]) -> Shares:
        """Rows as shares: label -> the variant whose rows it takes."""
        cells = PairedTable(rows, items)
        found = Shares({axis: [x.cluster for x in some] for axis, some in cells.axes.items()})
        for label, variant in variants.items():
            found.add(label, cells, variant)
        return found

    def ways(self, name: str, stack: Stack, items: Sequence[Item]) -> tuple[Shares, str, list[str]]:
        """The base asked in every way, and the stage after it as `sft`: shares, the declared way, all ways."""
        after = stack.chain(stack.serve)[1]
        with Experiment(stack, self.services, self.folder, name=name, items=items, kind="tour") as experiment:
            rows, formats = asyncio.run(base_prompting.measured_ways(experiment, after))
        labels = {way: way for way in formats} | {after: base_prompting.STAGE}
        return self.shares(items, rows, labels), formats[0], formats

    def kl(self, name: str, variant: Stack, items: Sequence[Item]) -> TourNumber:
        """KL of a stage to its parent in nats an answer, from one drawn answer an item."""
        parent = variant.parent(variant.serve)
        with Experiment(
            variant, self.services, self.folder, name=name, items=items, kind="tour"
        ) as experiment:
            experiment.runtime.warm({variant.serve, parent})
            drawn: list[KlFromParent] = asyncio.run(
                kl_from_parent(experiment.runtime, variant, parent, items)
            )
        found = divergence(drawn)
        if found is None:
            raise UsageError(f"{variant.model_id}: no item fits the context, so no KL can be estimated")
        return TourNumber(found.value, found.low, found.high, found.n, "nats")
