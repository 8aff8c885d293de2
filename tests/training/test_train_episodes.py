"""Episodes as exact token paths: what counts as written by the policy, and how paths become trees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from demeanor.core.errors import ContextError, EngineError
from demeanor.core.types import Completion, Message, Messages, ToolCall
from demeanor.data.trees import collate, num_scored
from demeanor.training.episodes import PolicyCall, Talk, converse, paths, rollout
from demeanor.training.iteration import units_of
from demeanor.training.rewards import Task, TokenPath

TASK = Task((Message("user", "2 + 2?"),), (1, 2, 3))


def call(
    prompt: tuple[int, ...], drawn: tuple[int, ...], *, ended: bool = True, forced: bool = False
) -> PolicyCall:
    """A call whose log-probs are minus its tokens, so that a shift by one is seen."""
    return PolicyCall(prompt, drawn, tuple(-float(t) for t in drawn), ended=ended, forced=forced)


def test_a_call_that_continues_the_path_is_one_path_and_what_stands_between_is_not_written() -> None:
    found = paths([call((1, 2, 3), (10, 11)), call((1, 2, 3, 10, 11, 50, 51), (12,))])
    assert found == [
        TokenPath(
            (1, 2, 3),
            (10, 11, 50, 51, 12),
            (True, True, False, False, True),
            (-10.0, -11.0, -12.0),
            ((), (), ()),
        )
    ]


def test_one_other_token_in_the_prompt_makes_a_path_of_its_own() -> None:
    found = paths([call((1, 2, 3), (10, 11)), call((1, 2, 3, 10, 99, 50), (12,))])
    assert [(p.prompt, p.tokens) for p in found] == [((1, 2, 3), (10, 11)), ((1, 2, 3, 10, 99, 50), (12,))]


def test_a_path_is_continued_although_another_stands_between() -> None:
    found = paths([call((1,), (5,)), call((9,), (6,)), call((1, 5, 7), (8,))])
    assert [(p.prompt, p.tokens, p.written) for p in found] == [
        ((1,), (5, 7, 8), (True, False, True)),
        ((9,), (6,), (True,)),
    ]


def test_tokens_that_a_grammar_chose_are_not_written_by_the_policy() -> None:
    found = rollout(TASK, [call((1, 2, 3), (10,), forced=True), call((1, 2, 3, 10, 4), (11,))], Talk((), ""))
    assert (found.tokens, found.written, found.sampled) == ((10, 4, 11), (False, False, True), (-11.0,))


def test_tool_text_that_equals_the_policys_is_told_apart_by_who_wrote_it() -> None:
    """The same ids 10 11, once drawn and once given by a tool: only the drawn ones are trained."""
    calls = [call((1, 2, 3), (10, 11)), call((1, 2, 3, 10, 11, 10, 11), (10,))]
    found = rollout(TASK, calls, Talk((), ""))
    assert found.tokens == (10, 11, 10, 11, 10)
    assert found.written == (True, True, False, False, True)


def test_kept_tokens_stay_beside_their_draws() -> None:
    first = PolicyCall((1,), (5, 6), (-0.5, -0.25), ((5, 7), (6,)))
    found = rollout(TASK, [first, call((1, 5, 6, 2), (8,))], Talk((), ""))
    assert found.kept == ((5, 7), (6,), ())


def test_an_episode_without_a_call_has_no_tokens_and_no_branch() -> None:
    found = rollout(TASK, [], Talk((), "I cannot help with that."))
    assert (found.tokens, found.written, found.ended, found.text) == (
        (),
        (),
        False,
        "I cannot help with that.",
    )
    assert units_of([(0, found)]) == ()


def test_the_task_of_a_rollout_holds_the_prompt_that_the_policy_read() -> None:
    found = rollout(TASK, [call((7, 1, 2, 3), (10,))], Talk((), ""))
    assert found.task.tokens == (7, 1, 2, 3)


def test_a_group_is_one_tree_and_later_paths_are_trees_of_the_same_rollout() -> None:
    group = [
        rollout(TASK, [call((1, 2, 3), (10, 11))], Talk((), "")),
        rollout(TASK, [call((1, 2, 3), (12,)), call((9, 9), (13, 14))], Talk((), "")),
        rollout(TASK, [], Talk((), "refused by a layer")),
    ]
    found = units_of(list(enumerate(group)))
    assert [(u.tree.prompt, [b.tokens for b in u.tree.branches]) for u in found] == [
        ((1, 2, 3), [(10, 11), (12,)]),
        ((9, 9), [(13, 14)]),
    ]
    owners = [owner for unit in found for owner in unit.owners]
    assert owners == [0, 1, 1]
    batch = collate([unit.tree for unit in found])
    assert batch.targets_C.tolist() == [10, 11, 12, 13, 14]
    owner_C = [owners[b] for b in batch.branch_C.tolist()]
    drawn = {i: [t for t, o in zip(batch.targets_C.tolist(), owner_C) if o == i] for i in (0, 1)}
    assert drawn == {0: [10, 11], 1: [12, 13, 14]}, "each rollout's tokens, in the order they were drawn"


def test_the_last_scored_token_is_the_last_one_that_the_policy_wrote() -> None:
    """A reward at the end of a completion lands on a drawn token although tool tokens follow it."""
    found = rollout(TASK, [call((1, 2, 3), (10,)), call((1, 2, 3, 10, 70, 71), (11,))], Talk((), ""))
    longer = found._replace(tokens=(*found.tokens, 72, 73), written=(*found.written, False, False))
    (unit,) = units_of([(0, longer)])
    batch = collate([unit.tree])
    assert batch.targets_C.tolist() == [10, 11]
    assert int(batch.tokens_T[batch.scored_C[-1]]) == 71, "it is predicted after the tool's last token"
    assert num_scored(unit.tree) == 2 == len(longer.sampled)


# ---- conversations ----


def says(*answers: str) -> tuple[Callable[[Messages], Awaitable[Completion]], list[Messages]]:
    """A policy of fixed answers, and the conversations that it was asked with."""
    asked: list[Messages] = []

    async def ask(messages: Messages) -> Completion:
        asked.append(messages)
        return Completion(answers[len(asked) - 1], "stop")

    return ask, asked


def talk(ask: Callable[[Messages], Awaitable[Completion]], environment: object, turns: int = 3) -> Talk:
    return asyncio.run(converse(TASK, ask, environment, turns=turns, timeout_s=0.5))  # type: ignore[arg-type]


def test_the_environment_answers_until_it_has_nothing_to_say() -> None:
    seen: list[Messages] = []

    def environment(task: Task, messages: Messages) -> Messages | None:
        seen.append(messages)
        return (Message("user", "Sure?"),) if len(seen) == 1 else None

    ask, asked = says("4", "yes, 4")
    found = talk(ask, environment)
    assert [m.content for m in found.messages] == ["4", "Sure?", "yes, 4"]
    assert [m.content for m in asked[1]] == ["2 + 2?", "4", "Sure?"]
    assert [m.content for m in seen[1]] == ["2 + 2?", "4", "Sure?", "yes, 4"]
    assert (found.text, found.error) == ("yes, 4", None)


def test_an_async_environment_with_a_score_ends_after_the_last_turn_without_being_asked() -> None:
    class Twice:
        asked = 0

        async def __call__(self, task: Task, messages: Messages) -> Messages:
            self.asked += 1
            return (Message("user", "more"),)

        async def score(self, task: Task, messages: Messages) -> float:
            return float(len(messages))

    environment = Twice()
    ask, _ = says("a", "b")
    found = talk(ask, environment, turns=2)
    assert (environment.asked, found.score) == (1, 4.0)
    assert found.messages[-1].content == "b", (
        "the last word is the policy's: what follows it nobody would read"
    )


def test_calls_reach_the_environment_with_their_arguments() -> None:
    wanted = ToolCall("c", "f", '{"x":  1}')
    seen: list[Message] = []

    async def ask(messages: Messages) -> Completion:
        return Completion("", "tool_calls", tool_calls=(wanted,))

    def environment(task: Task, messages: Messages) -> None:
        seen.append(messages[-1])

    talk(ask, environment)
    assert [m.tool_calls for m in seen] == [(wanted,)]


def test_a_failing_environment_loses_its_episode_and_says_why() -> None:
    def environment(task: Task, messages: Messages) -> Messages:
        raise ValueError("no such room")

    ask, _ = says("north")
    found = talk(ask, environment)
    assert (found.error, found.text) == ("ValueError: no such room", "north")


def test_a_slow_environment_is_ended_by_the_time_limit() -> None:
    async def environment(task: Task, messages: Messages) -> Messages:
        await asyncio.sleep(5)
        return ()

    ask, _ = says("north")
    assert talk(ask, environment).error == "not finished after 0.5 s"


def test_a_conversation_too_long_for_the_model_is_lost_and_a_broken_engine_ends_the_run() -> None:
    def failing(error: Exception) -> Callable[[Messages], Awaitable[Completion]]:
        async def ask(messages: Messages) -> Completion:
            raise error

        return ask

    assert talk(failing(ContextError("the prompt has 99 tokens")), None).error == "the prompt has 99 tokens"
    with pytest.raises(EngineError, match="closed"):
        talk(failing(EngineError("the engine is closed")), None)
