"""Rollouts through the real runtime layers: what the policy wrote is trained, what a layer wrote is not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor.core.types import Message, Messages, Passage
from demeanor.layers import Kit, compose, policy, prompt, retrieval, tools
from demeanor.layers.tools import LoadedTool, load
from demeanor.policy_sampler import PolicySampler
from demeanor.text.template import Template, load_template
from demeanor.training.rewards import Rollout, Task
from tests.app.test_policy_sampler import stage
from tests.engine.test_recorder import ScriptedEngine, spelled
from tests.layers.fake_layers import kit
from tests.text.conversations import ours

TOKENIZER = ours()
TEMPLATE: Template = load_template("turns", TOKENIZER, folder=None, root=Path())
ASKED = (Message("user", "What do 37 trips cost?"),)
TASK = Task(ASKED, tuple(TEMPLATE.render(ASKED, generate=True).tokens))
END, CALL = TOKENIZER.eos_id, TOKENIZER.special["<|call|>"]
CALLED = [CALL, *spelled(TOKENIZER, '{"name": "calculator", "arguments": {"expression": "37*12"}}'), END]
ANSWER = [*spelled(TOKENIZER, "Corkel 37."), END]


def played(
    layers: Sequence[tuple[Any, Any]],
    answers: Sequence[Sequence[int]],
    *,
    given: Kit | None = None,
    environment: Any = None,
    **rollouts: Any,
) -> Rollout:
    """One episode of a scripted policy through some layers."""
    engine = ScriptedEngine(TOKENIZER, *answers)
    sampler = PolicySampler(
        stage(max_tokens=400, **rollouts),
        TOKENIZER,
        TEMPLATE,
        lambda inner: compose(layers, inner, given or kit(tools=load(["calculator"]))),
        None if environment is None else lambda: environment,
        Path(),
        Path(),
    )
    ((found,),) = asyncio.run(sampler._played(engine, [TASK], [[1]]))
    return found


def drawn(rollout: Rollout) -> list[int]:
    return [t for t, mine in zip(rollout.tokens, rollout.written) if mine]


def others(rollout: Rollout) -> str:
    return TOKENIZER.decode([t for t, mine in zip(rollout.tokens, rollout.written) if not mine])


def calculator() -> tuple[Any, Any]:
    return (tools.Spec(allow=("calculator",), timeout_s=0.3), tools)


def rules(folder: Path, *listed: Mapping[str, Any]) -> tuple[tuple[Any, Any], Kit]:
    (folder / "policy.yaml").write_text(yaml.safe_dump({"rules": list(listed)}))
    return (policy.Spec(), policy), kit(folder, tools=load(["calculator"]))


CARD = {
    "name": "town",
    "on": "output",
    "pattern": "Corkel",
    "action": "refuse",
    "reason": "r",
    "reply": "No.",
}
ASKS = {
    "name": "trips",
    "on": "input",
    "pattern": "trips",
    "action": "refuse",
    "reason": "r",
    "reply": "Not I.",
}


def test_a_tools_round_is_one_path_and_its_result_is_not_written() -> None:
    found = played([calculator()], [CALLED, ANSWER])
    assert found.later == ()
    assert drawn(found) == [*CALLED, *ANSWER]
    assert "444" in others(found)
    assert (found.text.strip(), found.error, found.ended) == ("Corkel 37.", None, True)


@pytest.mark.parametrize("fails", ["raises", "hangs"])
def test_a_tool_that_fails_is_an_observation_of_the_policy(fails: str) -> None:
    async def run(arguments: Mapping[str, Any]) -> str:
        if fails == "raises":
            raise ValueError("no numbers today")
        await asyncio.sleep(5)
        return "never"

    broken = {"calculator": LoadedTool(load(["calculator"])["calculator"].spec, run)}
    found = played([calculator()], [CALLED, ANSWER], given=kit(tools=broken))
    assert found.error is None
    assert "error:" in others(found)
    assert drawn(found) == [*CALLED, *ANSWER]


def test_a_request_that_the_policy_layer_refuses_trains_nothing(tmp_path: Path) -> None:
    layer, given = rules(tmp_path, ASKS)
    found = played([layer], [ANSWER], given=given)
    assert (found.tokens, found.sampled, found.text, found.ended) == ((), (), "Not I.", False)
    assert found.error is None, "a refusal is no failure"


def test_an_answer_that_the_policy_layer_refuses_is_trained_as_it_was_drawn(tmp_path: Path) -> None:
    layer, given = rules(tmp_path, CARD)
    found = played([layer], [ANSWER], given=given)
    assert found.text == "No."
    assert len(drawn(found)) > 0
    assert drawn(found) == ANSWER[: len(drawn(found))], "the canned text is nobody's token"


def test_the_operators_prompt_is_part_of_what_the_policy_reads() -> None:
    found = played([(prompt.Spec(text="Desk Pilot."), prompt)], [ANSWER])
    assert TOKENIZER.decode(found.task.tokens).count("Desk Pilot.") == 1
    assert found.task.tokens != TASK.tokens
    assert found.tokens == tuple(ANSWER)


def test_passages_that_change_with_the_turn_make_a_path_of_its_own() -> None:
    """The second question brings other passages, so the first prompt is not the beginning of the second."""

    def search(query: str, number: int) -> list[Passage]:
        return [Passage(query, f"About {query}", 1.0, "notes")]

    def environment(task: Task, messages: Messages) -> Messages:
        return (Message("user", "Who runs the ferry?"),)

    layer = (retrieval.Spec(index="notices", top_k=1), retrieval)
    found = played(
        [layer],
        [ANSWER, ANSWER],
        given=kit(open_index=lambda folder, how: search),
        environment=environment,
        turns=2,
    )
    assert found.tokens == tuple(ANSWER)
    (second,) = found.later
    assert second.tokens == tuple(ANSWER)
    assert "About Who runs the ferry?" in TOKENIZER.decode(second.prompt)
    assert len(found.sampled) == len(second.sampled) == len(ANSWER)


def test_a_layer_that_breaks_loses_its_episode_only() -> None:
    def search(query: str, number: int) -> list[Passage]:
        raise RuntimeError("index is gone")

    layer = (retrieval.Spec(index="notices", top_k=1), retrieval)
    found = played([layer], [ANSWER], given=kit(open_index=lambda folder, how: search))
    assert found.error == "RuntimeError: index is gone"


def test_calls_that_no_layer_answers_go_to_the_environment() -> None:
    asked: list[Message] = []

    def environment(task: Task, messages: Messages) -> Messages:
        asked.append(messages[-1])
        (call,) = messages[-1].tool_calls
        return (Message("tool", "444", tool_call_id=call.id, name=call.name),)

    found = played([], [CALLED, ANSWER], environment=environment, turns=2)
    assert [c.name for c in asked[0].tool_calls] == ["calculator"]
    assert (found.later, drawn(found)) == ((), [*CALLED, *ANSWER])
    assert "444" in others(found)


def test_all_layers_together_play_a_tool_round_in_one_path(tmp_path: Path) -> None:
    layer, given = rules(tmp_path, ASKS | {"pattern": "pirates"})
    found = played([layer, calculator(), (prompt.Spec(text="Desk."), prompt)], [CALLED, ANSWER], given=given)
    assert (found.later, drawn(found), found.error) == ((), [*CALLED, *ANSWER], None)
