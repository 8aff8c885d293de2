"""Interventions on a stack, and the harness that serves and measures them beside the unchanged stack.

In: an experiment, interventions. Out: rows by the name of the intervention. What is worth trying stands in interventions.py and prompts.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from demeanor.core.errors import CheckpointError, DataError
from demeanor.core.types import Item, Messages, Respond
from demeanor.evaluation.diagnosis.analysis import AS_IS, InterventionInfo
from demeanor.evaluation.experiment import Experiment, Scorer, Subject, Wrap
from demeanor.evaluation.result_rows import Row
from demeanor.evaluation.runtime import Runtime
from demeanor.stack.stack import Stack, digest

TEMPLATES = ("turns", "chatml", "transcript")
log = logging.getLogger("demeanor.evaluation")


def unchanged(respond: Respond) -> Respond:
    """No wrap."""
    return respond


@dataclass(frozen=True, slots=True)
class Intervention:
    """One intervention ready to be served: a variant, what is put around it, and what stands in for parts of its runtime.

    `marks` is whatever of it is not in the variant's key; `renamed` maps argument names as the tool has them to those that the
    weights write, `weights_of` lends the weights of another stack.
    """

    about: InterventionInfo
    variant: Stack
    wrap: Wrap = unchanged
    marks: tuple[Any, ...] = ()
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    weights_of: Stack | None = None
    only: frozenset[Messages] | None = None
    """Conversations that it changes (None: all); the others are answered by `otherwise`."""
    otherwise: Stack | None = None

    @property
    def key(self) -> str:
        lent = self.weights_of.stage_key(self.weights_of.serve) if self.weights_of else None
        return digest([self.variant.key(), self.marks, {k: dict(v) for k, v in self.renamed.items()}, lent])


def as_it_is(stack: Stack) -> Intervention:
    """The stack itself, to be measured as the interventions are."""
    return Intervention(InterventionInfo(AS_IS, "again", "", ""), stack)


class ReplayHarness:
    """Serves interventions: on the runtime of an experiment, on others that share its engines, or with weights of a reference stack."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._references: dict[str, Experiment] = {}
        self._swapped: dict[str, Runtime] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened beside the experiment."""
        for runtime in self._swapped.values():
            runtime.close()
        for reference in self._references.values():
            reference.close()

    def reference(self, stack: Stack) -> Experiment:
        """Another stack, opened to be measured on the same items and scored as this one is."""
        key, own = stack.key(), self.experiment
        if key not in self._references:
            self._references[key] = Experiment(
                stack,
                own.services,
                own.folder,
                name=own.name,
                kind=own.kind,
                items=own.items,
                score=own.score,
            )
        return self._references[key]

    def respond(self, intervention: Intervention) -> Respond:
        """The intervention's variant inside its wrap, for the conversations that it is about."""
        changed = intervention.wrap(self._runtime(intervention).respond(intervention.variant))
        if intervention.only is None or intervention.otherwise is None:
            return changed
        only, unchanged = intervention.only, self.experiment.runtime.respond(intervention.otherwise)
        return lambda turn: (changed if turn.messages in only else unchanged)(turn)

    def _runtime(self, intervention: Intervention) -> Runtime:
        lent, renamed = intervention.weights_of, intervention.renamed
        if lent is None and not renamed:
            return self.experiment.runtime
        names = {tool: dict(arguments) for tool, arguments in renamed.items()}
        key = json.dumps([names, None if lent is None else intervention.variant.key()])
        if key not in self._swapped:
            lender = None if lent is None else self.reference(lent).runtime
            self._swapped[key] = self.experiment.runtime.swapped(lender, renamed)
        return self._swapped[key]

    def able(self, planned: Sequence[Intervention]) -> list[Intervention]:
        """The interventions that can be served; one that cannot (a checkpoint without a template of its own) is logged and left out."""
        found = []
        for intervention in planned:
            try:
                self.respond(intervention)
            except (CheckpointError, DataError) as error:
                log.warning("%s is not tried: %s", intervention.about.name, error)
                continue
            found.append(intervention)
        return found

    async def replay(
        self,
        planned: Sequence[Intervention],
        items: Sequence[Item] | None = None,
        score: Scorer | None = None,
    ) -> list[Row]:
        """Measure interventions; the variant of a row is the intervention's name."""
        subjects = {x.about.name: Subject(self.respond(x), self._key(x)) for x in planned}
        return await self.experiment.rows(subjects, items, score)

    def _key(self, intervention: Intervention) -> str:
        """The intervention's key; with tools that are not the usual ones also these, which no stack key knows."""
        tools = self.experiment.runtime.tool_set
        if tools is None:
            return intervention.key
        return digest([intervention.key, {name: dict(tool.spec.parameters) for name, tool in tools.items()}])
