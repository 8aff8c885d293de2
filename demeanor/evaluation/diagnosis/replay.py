"""Parts of a healthy stack put into another one, and tools that take the arguments a model writes.

In: two stacks. Out: Trials that each lend one part (weights, template, decoding, one runtime layer), and the houses that can
serve them. Nothing is measured here.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from demeanor.app import StackRuntime
from demeanor.core.errors import CheckpointError, DataError
from demeanor.core.types import Item, Respond
from demeanor.evaluation import judge as verdicts
from demeanor.evaluation import measure
from demeanor.evaluation.diagnosis.analysis import AS_IS, Intervention, InterventionInfo
from demeanor.evaluation.diagnosis.interventions import absolute, decoded_as, retemplated
from demeanor.evaluation.experiment import Scorer, run
from demeanor.evaluation.judge import JudgeClient
from demeanor.evaluation.rows import Row
from demeanor.evaluation.scorers import score_item
from demeanor.evaluation.scorers import scored_from_text as scorable_from_text
from demeanor.stack.stack import Stack, decoding_of, digest


def swaps(stack: Stack, healthy: Stack) -> list[Intervention]:
    """Every part in which the stacks differ, one at a time as the healthy one has it; a part accuses what it replaces."""
    return [
        *_weights(stack, healthy),
        *_template(stack, healthy),
        *_other_decoding(stack, healthy),
        *_layers(stack, healthy),
    ]


def foreign(healthy: Stack) -> Stack:
    """The stack with its files named from the root of the file system, so that a house of another stack can serve it."""
    healthy.key()
    found = replace(healthy, layers=tuple(absolute(x, healthy.root) for x in healthy.layers))
    name = healthy.template
    return retemplated(found, str((healthy.root / name).resolve())) if name.endswith(".jinja") else found


def _about(part: str, layer: str) -> InterventionInfo:
    return InterventionInfo(
        f"{part} of the healthy stack",
        "reference",
        layer,
        f"Take back {part}: the healthy stack's does better.",
    )


def _weights(stack: Stack, healthy: Stack) -> Iterator[Intervention]:
    if stack.stage_key(stack.serve) == healthy.stage_key(healthy.serve):
        return
    same = {healthy.stage_key(name) for name in healthy.chain(healthy.serve)}
    stage = next(
        (name for name in stack.chain(stack.serve) if stack.stage_key(name) not in same), stack.serve
    )
    yield Intervention(_about("weights", stage), stack, weights_of=healthy)


def _template(stack: Stack, healthy: Stack) -> Iterator[Intervention]:
    lent = retemplated(stack, foreign(healthy).template)
    if lent.key() != stack.key():
        yield Intervention(_about("template", "template"), lent)


def _other_decoding(stack: Stack, healthy: Stack) -> Iterator[Intervention]:
    if decoding_of(stack) != decoding_of(healthy):
        yield Intervention(
            _about("decoding", "decoding"),
            stack,
            decoded_as(decoding_of(healthy)),
            ("decoding", asdict(decoding_of(healthy))),
        )


def _layers(stack: Stack, healthy: Stack) -> Iterator[Intervention]:
    order = [x.name for x in healthy.layers]
    for layer in foreign(healthy).layers:
        if not layer.behaviour:
            continue
        ours = [x.name for x in stack.layers]
        if layer.name in ours:
            layers = tuple(layer if x.name == layer.name else x for x in stack.layers)
        else:
            later = set(order[order.index(layer.name) + 1 :])
            at = next((n for n, name in enumerate(ours) if name in later), len(ours))
            layers = (*stack.layers[:at], layer, *stack.layers[at:])
        lent = replace(stack, layers=layers)
        if lent.key() != stack.key():
            yield Intervention(_about(layer.name, layer.name), lent)


log = logging.getLogger("demeanor.evaluation")
ROWS = re.compile(r"\.(?:diagnosis|base)\.rows\.jsonl$")
"""How the rows of trials are named, which `eval` has not measured."""


@dataclass
class ReplayHarness:
    """Where trials are served: one house for the stack, and others that share its engines or lend those of another stack."""

    house: StackRuntime
    lenders: dict[str, StackRuntime] = field(default_factory=dict)
    court: JudgeClient | None = None
    _others: dict[str, StackRuntime] = field(default_factory=dict)

    def scorer(self, items: Sequence[Item], out: Path) -> Scorer:
        """Who scores: each item's own rule, and the judge of the stack where there is one and something to judge.

        Verdicts on rows in NAME.diagnosis.rows.jsonl and NAME.base.rows.jsonl lie in NAME.verdicts.jsonl: what `eval` asked is not
        asked again.
        """
        if self.court is None:
            self.court = verdicts.of_suite(
                self.house.stack, items, out.with_name(ROWS.sub(".rows.jsonl", out.name))
            )
        return self.court.score if self.court else score_item

    def respond(self, trial: Intervention) -> Respond:
        """The trial's variant inside its wrap, for the turns that it is about."""
        changed = self._changed(trial)
        if trial.only is None or trial.otherwise is None:
            return changed
        only, unchanged = trial.only, self.house.respond(trial.otherwise)
        return lambda turn: (changed if turn.messages in only else unchanged)(turn)

    def able(self, planned: Sequence[Intervention]) -> list[Intervention]:
        """The trials that can be served; one that cannot (a checkpoint without a template of its own) is told and left out."""
        found = []
        for trial in planned:
            try:
                self.respond(trial)
            except (CheckpointError, DataError) as error:
                log.warning("%s is not tried: %s", trial.about.name, error)
                continue
            found.append(trial)
        return found

    def _changed(self, trial: Intervention) -> Respond:
        if trial.weights_of is None and not trial.renamed:
            return trial.wrap(self.house.respond(trial.variant))
        lender = None if trial.weights_of is None else self.lender(trial.weights_of)
        key = json.dumps([{k: dict(v) for k, v in trial.renamed.items()}, lender and trial.variant.key()])
        if key not in self._others:
            self._others[key] = self.house.swapped(lender, trial.renamed)
        return trial.wrap(self._others[key].respond(trial.variant))

    def lender(self, stack: Stack) -> StackRuntime:
        """The house of another stack."""
        if stack.key() not in self.lenders:
            self.lenders[stack.key()] = StackRuntime(stack, self.house.runs, operational=False)
        return self.lenders[stack.key()]

    def close(self) -> None:
        """Close every house, and say what the judge cost."""
        if self.court and self.court.verdicts + len(self.court.failures):
            print(self.court.summary(), file=sys.stderr)
        for house in [*self._others.values(), *self.lenders.values(), self.house]:
            house.close()


def as_it_is(stack: Stack) -> Intervention:
    """The stack itself as a trial, so that it is measured as the others are."""
    return Intervention(InterventionInfo(AS_IS, "again", "", ""), stack)


async def rows_of(
    bench: ReplayHarness, planned: Sequence[Intervention], items: Sequence[Item], out: Path, score: Scorer
) -> list[Row]:
    """Measure trials (variants by the name of their intervention) on items."""
    stack, other_tools = bench.house.stack, bench.house.tool_set
    drifted = (
        {n: dict(t.spec.parameters) for n, t in other_tools.items()} if other_tools else None
    )  # no stack key knows of them
    keys = {t.about.name: t.key if drifted is None else digest([t.key, drifted]) for t in planned}
    of_items = score == score_item or (
        bench.court is not None and score == bench.court.score
    )  # of logged turns people have judged
    responds = {t.about.name: bench.respond(t) for t in planned}
    return await run(
        items,
        responds,
        score=score,
        seeds=stack.spec.evaluation.seeds,
        decoding=decoding_of(stack),
        keys=keys,
        out=out,
        concurrency=measure.CONCURRENCY,
        again=scorable_from_text if of_items else None,
    )
