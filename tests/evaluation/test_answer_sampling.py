"""Answers that people compare: distinct, drawn from the variants in turn; a model on another server is asked for no log-probabilities."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from demeanor.app import load_stack
from demeanor.core.errors import EngineError
from demeanor.core.types import Done, Event, Message, Respond, Text, Turn
from demeanor.evaluation.answer_sampling import DrawnAnswer, PromptToSample, sample_stack
from demeanor.stack.stack import Stack
from tests.conftest import each
from tests.evaluation import clerk

PROMPTS = [PromptToSample(f"p{n}", (Message("user", f"Question {n}?"),)) for n in range(5)]


class Scripted:
    """A runtime that says the seed, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Turn] = []

    def respond(self, variant: Stack) -> Respond:
        async def respond(turn: Turn) -> AsyncIterator[Event]:
            self.asked.append(turn)
            if "Question 4" in turn.messages[-1].content or turn.messages[-1].content == "":
                raise EngineError("sunk")
            yield Text(f"At {turn.decoding.seed}.")
            yield Done("stop")

        return respond

    def warm(self, stages: Collection[str]) -> None:
        """Nothing to load."""

    def close(self) -> None:
        """Nothing to end."""


def drawn(folder: Path, base: str, prompts: list[PromptToSample]) -> tuple[Scripted, list[list[DrawnAnswer]]]:
    (folder / "stack.yaml").write_text(f"name: desk\nweights: {{base: {base}}}\nlayers: []\n")
    runtime = Scripted()
    services = replace(clerk.services(folder), open=lambda stack: runtime)  # type: ignore[arg-type, return-value]
    stack = load_stack(folder / "stack.yaml")
    return runtime, sample_stack(stack, services, [], prompts, 2, temperature=1.0, seed=0)[1]


@pytest.mark.parametrize(
    ("base", "logprobs"),
    [
        ("{kind: scratch, data: world:corpus}", 0),
        ("{kind: remote, url: 'http://127.0.0.1:1/v1', model: m}", None),
    ],
)
def test_log_probabilities_are_asked_of_weights_on_this_machine_alone(
    tmp_path: Path, base: str, logprobs: int | None
) -> None:
    runtime, answers = drawn(tmp_path, base, PROMPTS[:4])
    assert all(turn.decoding.top_logprobs == logprobs for turn in each(runtime.asked))
    assert all(len({answer.text for answer in found}) == 2 for found in each(answers))


def test_a_prompt_that_fails_is_left_out_and_if_all_fail_the_first_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, answers = drawn(tmp_path, "{kind: scratch, data: world:corpus}", PROMPTS)
    assert [len(found) for found in answers] == [2, 2, 2, 2, 0]
    assert "left out: p4: sunk" in capsys.readouterr().out
    failing = [PromptToSample(f"f{n}", (Message("user", ""),)) for n in range(5)]
    with pytest.raises(EngineError, match="no prompt could be answered; the first: f0: sunk"):
        drawn(tmp_path, "{kind: scratch, data: world:corpus}", failing)
    _, answers = drawn(tmp_path, "{kind: scratch, data: world:corpus}", [*failing, PROMPTS[0]])
    assert "left out: 2 more prompts" in capsys.readouterr().out
