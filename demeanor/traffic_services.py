"""Composition of live traffic: the declarations of a served stack as experiments, shadows and evaluators that can run.

In: the runtime of the served stack, and what opens the runtime of another stack file. Out: a LiveTraffic, and the cards of its arms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demeanor.app import StackRuntime, load_stack
from demeanor.core.errors import UsageError
from demeanor.core.types import Completion, Done, Event, Respond, Text, Turn, complete
from demeanor.engine.remote import remote
from demeanor.evaluation.ab_test import experiment_id
from demeanor.evaluation.items import JUDGED
from demeanor.layers import compose
from demeanor.layers.tools.calls import DRY_RUN
from demeanor.server.assistant import Replay
from demeanor.stack.schema import JudgeSpec, Remote
from demeanor.stack.serving_schema import EvaluatorSpec, ExperimentSpec, ShadowSpec
from demeanor.stack.stack import Layer, Stack, digest
from demeanor.traffic import declared
from demeanor.traffic.jobs import JobKind, JobRunner
from demeanor.traffic.live import LiveTraffic, PreparedArm, PreparedExperiment, Sampler, Screen
from demeanor.traffic.work import LiveJudge, ShadowVariant, evaluator_work, shadow_work

SHARED = frozenset({"limits", "record", "database"})
"""What the runtimes of other stack files share with the served one: counters and the database."""


@dataclass(frozen=True)
class OpenedTraffic:
    """Live traffic, the variants of its arms by (experiment, number), and the runtimes that were opened for it."""

    live: LiveTraffic
    arms: dict[tuple[str, int], Stack]
    runtimes: tuple[StackRuntime, ...]


def open_traffic(runtime: StackRuntime, open_other: Callable[[Stack], StackRuntime]) -> OpenedTraffic | None:
    """Make what a stack declares ready to run; None if it declares nothing.

    Raises DemeanorError for a variant that cannot answer, or a judge without its key. `open_other` opens another stack's runtime.
    """
    spec, url = runtime.stack.spec.serve, declared.database_of(runtime.stack)
    if url is None or not (spec.experiments or spec.shadows or spec.evaluators):
        return None
    database, variants = runtime.opened(url), _Variants(runtime, open_other)
    arms: dict[tuple[str, int], Stack] = {}
    prepared = [_experiment(each, variants, arms) for each in spec.experiments]
    live = LiveTraffic(database, tuple(prepared))
    live.refresh()  # a run that was stopped assigns nobody, from the first request on
    live.samplers += [_shadow(shadow, variants, live) for shadow in spec.shadows]
    live.samplers += [_evaluator(evaluator, runtime.stack, live) for evaluator in spec.evaluators]
    return OpenedTraffic(live, arms, tuple(variants.others.values()))


class _Variants:
    """Variants of the served stack and of other stack files, each file opened once."""

    def __init__(self, runtime: StackRuntime, open_other: Callable[[Stack], StackRuntime]) -> None:
        self.runtime, self._open = runtime, open_other
        self.others: dict[Path, StackRuntime] = {}

    def of(self, model: str, file: str | None, where: str) -> tuple[StackRuntime, Stack]:
        """The runtime and the variant that a declaration names; one of another file has this stack's record and limits layers."""
        if file is None:
            return self.runtime, self.runtime.stack.resolve(model)
        path = (self.runtime.stack.root / file).resolve()
        if path not in self.others:
            other = self._open(load_stack(path))
            other.share(self.runtime, SHARED)
            self.others[path] = other
        other = self.others[path]
        try:
            variant = other.stack.resolve(model)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        ours = [x for x in self.runtime.stack.layers if not x.behaviour]
        return other, replace(variant, layers=(*ours, *(x for x in variant.layers if x.behaviour)))


def _experiment(
    spec: ExperimentSpec, variants: _Variants, arms: dict[tuple[str, int], Stack]
) -> PreparedExperiment:
    found, keys = [], []
    for number, arm in enumerate(spec.arms):
        runtime, variant = variants.of(
            arm.model, arm.stack, f"serve.experiments: {spec.name}: arms[{number}]"
        )
        arms[spec.name, number] = variant
        keys.append(variant.key())
        found.append(PreparedArm(variant.model_id, runtime.respond(variant)))
    if len(set(keys)) < len(keys):
        raise UsageError(
            f"serve.experiments: {spec.name}: two arms have the same stack key, so there is nothing to compare"
        )
    return PreparedExperiment(experiment_id(spec, keys), spec, tuple(found))


def _shadow(spec: ShadowSpec, variants: _Variants, live: LiveTraffic) -> Sampler:
    runtime, variant = variants.of(spec.model, spec.stack, f"serve.shadows: {spec.name}")
    shown = screen_of(variants.runtime, variant)
    asked = ShadowVariant(variant.model_id, variant.key(), runtime.respond(variant, operational=False), shown)
    job = JobKind(
        "shadow",
        spec.name,
        declared.version(spec, [variant.key()]),
        spec.budget,
        shadow_work(spec, asked),
        own_engine=not isinstance(variant.spec.weights.base, Remote),
    )
    return Sampler(JobRunner(job, live.database, lambda: live.live, live.owner), spec)


def _evaluator(spec: EvaluatorSpec, stack: Stack, live: LiveTraffic) -> Sampler:
    judge = stack.spec.evaluation.judge if spec.scorer == JUDGED else None
    about = [] if judge is None else [judge.url, judge.model]
    work = evaluator_work(spec, None if judge is None else live_judge(judge))
    job = JobKind("evaluator", spec.name, declared.version(spec, about), spec.budget, work, own_engine=False)
    return Sampler(JobRunner(job, live.database, lambda: live.live, live.owner), spec)


def live_judge(judge: JudgeSpec) -> LiveJudge:
    """The judge of a stack for live turns. Raises UsageError if its key is not in the environment."""
    key = os.environ.get(judge.key_env) if judge.key_env else None
    if judge.key_env and not key:
        raise UsageError(
            f"evaluation.judge.key_env: the environment variable {judge.key_env} is not set; "
            f"it should hold the API key of {judge.url}"
        )
    respond = remote(judge.url, judge.model, key=key, timeout_s=judge.timeout_s, retries=judge.retries)
    return LiveJudge(judge.model, respond, judge.max_tokens)


# ---- answers of other variants are shown as the served policy would show them ----


def screen_of(runtime: StackRuntime, variant: Stack) -> Screen:
    """What shows an answer of a variant through the policy layers of the served stack that the variant lacks.

    A variant without the policy says what the policy hides; that is not to be read in a database or on a page.
    """
    own = [_identity(variant, layer) for layer in variant.layers]
    lacking = [
        layer
        for layer in runtime.stack.layers
        if layer.kind == "policy" and _identity(runtime.stack, layer) not in own
    ]
    kept = [(layer.spec, layer.module) for layer in lacking]

    async def screen(turn: Turn, completion: Completion) -> str:
        if not kept:
            return completion.text
        shown = await complete(compose(kept, said(completion.text), runtime.kit(lambda *_: 0)), turn)
        return shown.text

    return screen


async def replayed(runtime: StackRuntime, variant: Stack, turn: Turn) -> Replay:
    """Answer a recorded turn again through a variant: not recorded, tools without effects, hidden by the served policy."""
    again = replace(
        turn,
        id=f"{turn.id}~replay",
        variant=variant.model_id,
        stack_key=variant.key(),
        metadata={},
        approvals=None,
    )
    started, token = time.monotonic(), DRY_RUN.set(True)
    try:
        completion = await complete(runtime.respond(variant, operational=False), again)
    finally:
        DRY_RUN.reset(token)
    ms = 1000 * (time.monotonic() - started)
    text = await screen_of(runtime, variant)(again, completion)
    return Replay(variant.model_id, variant.key(), completion, text, ms)


def said(text: str) -> Respond:
    """A model that says one text."""

    async def respond(turn: Turn) -> Any:
        events: Sequence[Event] = (Text(text), Done("stop"))
        for event in events:
            yield event

    return respond


def _identity(stack: Stack, layer: Layer) -> str:
    """What a layer is: its kind, its settings and the content of its files."""
    return digest({"kind": layer.kind, **stack.contents_of(layer)})
