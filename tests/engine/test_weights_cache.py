"""Weights under a memory budget: the least recently used idle ones are unloaded and loaded again, and no answer is lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from demeanor.app import StackRuntime
from demeanor.core.errors import CheckpointError
from demeanor.core.types import Message, Turn, complete
from demeanor.engine.local import WeightsCache
from demeanor.stack.stack import Stack, decoding_of
from demeanor.training.runs import Runs


class Engine:
    num_bytes = 10

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@dataclass
class Held:
    engine: Engine


def cache(budget: int | None, loads: list[str]) -> WeightsCache[Held]:
    def load(stage: str) -> Held:
        if stage == "broken":
            raise CheckpointError("broken")
        loads.append(stage)
        return Held(Engine())

    return WeightsCache(load, budget)


def test_the_least_recently_used_goes_first_and_comes_back_when_asked() -> None:
    loads: list[str] = []
    it = cache(20, loads)
    first = it.get("a")
    for stage in ("b", "a", "c"):
        it.get(stage)
    assert (it.stages, loads, first.engine.closed) == (["a", "c"], ["a", "b", "c"], False)
    it.get("b")
    assert (it.stages, loads[-1], first.engine.closed) == (["c", "b"], "b", True)


def test_weights_in_use_stay_and_may_be_unloaded_once_released() -> None:
    it = cache(10, [])
    used = it.acquire("a")
    it.get("b")
    assert (it.stages, used.engine.closed) == (["a", "b"], False), (
        "over the budget rather than an answer lost"
    )
    it.release("a")
    assert (it.stages, used.engine.closed) == (["b"], True)


def test_without_a_budget_all_stay_and_a_load_that_fails_leaves_nothing() -> None:
    it = cache(None, [])
    for stage in ("a", "b", "c"):
        it.get(stage)
    with pytest.raises(CheckpointError):
        it.acquire("broken")
    assert it.stages == ["a", "b", "c"]
    it.close()
    assert it.stages == []


def test_a_served_stack_under_a_budget_of_one_set_of_weights_answers_as_one_without(
    trained: tuple[Stack, Runs],
) -> None:
    stack, runs = trained

    def answers(budget: int | None) -> tuple[list[str], list[str]]:
        runtime = StackRuntime(stack, runs, num_slots=2, budget_bytes=budget, operational=False)
        names = [f"{stack.spec.name}:{stage}" for stage in ("base", "sft", "dpo")] * 2
        turn = Turn((Message("user", "Who runs the ferry?"),), decoding_of(stack))

        async def ask() -> list[str]:
            one_by_one = [(await complete(runtime.respond(stack.resolve(name)), turn)).text for name in names]
            at_once = await asyncio.gather(
                *(complete(runtime.respond(stack.resolve(name)), turn) for name in names)
            )
            return [*one_by_one, *(x.text for x in at_once)]

        try:
            return asyncio.run(ask()), runtime._weights.stages
        finally:
            runtime.close()

    (free, all_loaded), (tight, loaded) = answers(None), answers(1)
    assert tight == free
    assert (len(all_loaded), len(loaded)) == (3, 1)
