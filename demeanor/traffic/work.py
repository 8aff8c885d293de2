"""What shadows and evaluators do with one recorded turn.

In: a turn as its user saw it. Out: an Outcome. A shadow answers the same conversation with the same decoding; its answer is kept as the served
policy would have shown it. An evaluator scores the answer that the user got.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from demeanor.core.errors import EngineError
from demeanor.core.types import Completion, Decoding, Item, Respond, Score, Turn, complete
from demeanor.evaluation import judge as judging
from demeanor.evaluation.items import JUDGED
from demeanor.evaluation.scorers import judged, score_item
from demeanor.layers.tools.calls import DRY_RUN
from demeanor.stack.serving_schema import EvaluatorSpec, ShadowSpec
from demeanor.store.database import Stored
from demeanor.store.turn_jobs import Outcome
from demeanor.traffic.live import Screen, scored_item

SHOWN = 2_000
"""Characters of an explanation that are kept."""


@dataclass(frozen=True, slots=True)
class ShadowVariant:
    """A variant that answers copies, without its record and limits layers."""

    model_id: str
    stack_key: str
    respond: Respond
    screen: Screen


def copied(turn: Turn, name: str, variant: ShadowVariant) -> Turn:
    """The turn as another variant is asked it: the same conversation, decoding and tools, under an id of its own."""
    return replace(
        turn,
        id=f"{turn.id}~{name}",
        variant=variant.model_id,
        stack_key=variant.stack_key,
        metadata={},
        approvals=None,
    )


def shadow_work(spec: ShadowSpec, variant: ShadowVariant) -> Callable[[Stored], Awaitable[Outcome]]:
    """Answer a copy of the turn, and score both answers if the shadow has a scorer."""

    async def work(stored: Stored) -> Outcome:
        turn, started = copied(stored.turn, spec.name, variant), time.monotonic()
        token = DRY_RUN.set(spec.tools == "dry")
        try:
            completion = await complete(variant.respond, turn)
        finally:
            DRY_RUN.reset(token)
        ms = 1000 * (time.monotonic() - started)
        if completion.finish_reason == "cancelled":
            return Outcome("failed", "cancelled: the server stopped or reloaded")
        value, live = None, None
        if spec.scorer is not None:
            value = await _scored(stored.turn, spec.scorer, spec.target, completion)
            live = await _scored(stored.turn, spec.scorer, spec.target, stored.completion)
        refused = completion.refusal
        return Outcome(
            "done",
            value=value,
            live_value=live,
            answer=await variant.screen(turn, completion),
            explanation=f"refused by {refused.by}: {refused.rule}" if refused else "",
            model=variant.model_id,
            stack_key=variant.stack_key,
            ms=ms,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        )

    return work


async def _scored(turn: Turn, scorer: str, target: Mapping[str, Any], completion: Completion) -> float | None:
    found = await asyncio.to_thread(score_item, scored_item(turn, scorer, target), completion)
    return found.value


@dataclass(frozen=True, slots=True)
class LiveJudge:
    """A judge for live turns: it keeps no verdicts, because live turns do not repeat."""

    model: str
    respond: Respond
    max_tokens: int

    async def __call__(self, item: Item, completion: Completion) -> tuple[Score, int, int]:
        """The verdict, and the tokens that it took. Raises DemeanorError if the judge does not answer."""
        target = judged.Spec.model_validate(dict(item.target))
        asked = judging.question(target, item, completion.text)
        decoding = Decoding(temperature=0.0, max_tokens=self.max_tokens)
        done = await complete(self.respond, Turn(asked, decoding, id=f"judge-{item.id}", user="evaluation"))
        if not done.text.strip():
            raise EngineError(f"the judge {self.model} said nothing")
        value = judging.verdict_value(target, done.text)
        if value is None:
            raise EngineError(f"the judge {self.model} gave no verdict that can be read")
        return Score(value, completion.text[:200], done.text), done.prompt_tokens, done.completion_tokens


def evaluator_work(spec: EvaluatorSpec, judge: LiveJudge | None) -> Callable[[Stored], Awaitable[Outcome]]:
    """Score the answer that the user got, by a scorer or by the judge."""

    async def work(stored: Stored) -> Outcome:
        item, started = scored_item(stored.turn, spec.scorer, spec.target), time.monotonic()
        read = written = 0
        if spec.scorer == JUDGED and judge is not None:
            score, read, written = await judge(item, stored.completion)
        else:
            score = await asyncio.to_thread(score_item, item, stored.completion)
        return Outcome(
            "done",
            "" if score.value is not None else "no score",
            value=score.value,
            explanation=score.explanation[:SHOWN],
            model=judge.model if judge and spec.scorer == JUDGED else "",
            ms=1000 * (time.monotonic() - started),
            prompt_tokens=read,
            completion_tokens=written,
        )

    return work
