"""Where interventions are served and measured: one house for the stack, and others that share its engines or borrow weights.

In: Trials and items. Out: rows, the variant of each being the name of its intervention. Judged items are scored by the judge of the
house's stack, who keeps its verdicts where `eval` does.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demeanor.build import grafts, measure, verdicts
from demeanor.build.house import House, decoding_of, from_text, judge
from demeanor.build.trials import Trial
from demeanor.build.verdicts import Court
from demeanor.errors import CheckpointError, DataError
from demeanor.evaluation.repairs import AS_IS, Intervention
from demeanor.evaluation.row import Row
from demeanor.evaluation.run import Scorer, run
from demeanor.stack import Stack, digest
from demeanor.types import Item, Respond

log = logging.getLogger("demeanor.evaluation")
ROWS = re.compile(r"\.(?:diagnosis|base)\.rows\.jsonl$")
"""How the rows of trials are named, which `eval` has not measured."""


@dataclass
class Bench:
    """Where trials are served: one house for the stack, and others that share its engines or lend those of another stack."""

    house: House
    lenders: dict[str, House] = field(default_factory=dict)
    court: Court | None = None
    _others: dict[str, House] = field(default_factory=dict)

    def scorer(self, items: Sequence[Item], out: Path) -> Scorer:
        """Who scores: each item's own rule, and the judge of the stack where there is one and something to judge.

        Verdicts on rows in NAME.diagnosis.rows.jsonl and NAME.base.rows.jsonl lie in NAME.verdicts.jsonl: what `eval` asked is not
        asked again.
        """
        if self.court is None:
            self.court = verdicts.of_suite(
                self.house.stack, items, out.with_name(ROWS.sub(".rows.jsonl", out.name))
            )
        return self.court.score if self.court else judge

    def respond(self, trial: Trial) -> Respond:
        """The trial's variant inside its wrap, for the turns that it is about."""
        changed = self._changed(trial)
        if trial.only is None or trial.otherwise is None:
            return changed
        only, unchanged = trial.only, self.house.respond(trial.otherwise)
        return lambda turn: (changed if turn.messages in only else unchanged)(turn)

    def able(self, planned: Sequence[Trial]) -> list[Trial]:
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

    def _changed(self, trial: Trial) -> Respond:
        if trial.weights_of is None and not trial.renamed:
            return trial.wrap(self.house.respond(trial.variant))
        lender = None if trial.weights_of is None else self.lender(trial.weights_of)
        key = json.dumps([{k: dict(v) for k, v in trial.renamed.items()}, lender and trial.variant.key()])
        if key not in self._others:
            self._others[key] = grafts.graft(self.house, lender, trial.variant.serve, trial.renamed)
        return trial.wrap(self._others[key].respond(trial.variant))

    def lender(self, stack: Stack) -> House:
        """The house of another stack."""
        if stack.key() not in self.lenders:
            self.lenders[stack.key()] = House(stack, self.house.runs, operational=False)
        return self.lenders[stack.key()]

    def close(self) -> None:
        """Close every house, and say what the judge cost."""
        if self.court and self.court.verdicts + len(self.court.failures):
            print(self.court.summary(), file=sys.stderr)
        for house in [*self._others.values(), *self.lenders.values(), self.house]:
            house.close()


def as_it_is(stack: Stack) -> Trial:
    """The stack itself as a trial, so that it is measured as the others are."""
    return Trial(Intervention(AS_IS, "again", "", ""), stack)


async def rows_of(
    bench: Bench, planned: Sequence[Trial], items: Sequence[Item], out: Path, score: Scorer
) -> list[Row]:
    """Measure trials (variants by the name of their intervention) on items."""
    stack, other_tools = bench.house.stack, bench.house.tool_set
    drifted = (
        {n: dict(t.spec.parameters) for n, t in other_tools.items()} if other_tools else None
    )  # no stack key knows of them
    keys = {t.about.name: t.key if drifted is None else digest([t.key, drifted]) for t in planned}
    of_items = score == judge or (
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
        again=from_text if of_items else None,
    )
