"""Replay of recorded turns: the same conversation, seed and decoding; a diff and a paired score; no effects, nothing that a policy hides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from demeanor.core.errors import EngineError, UsageError
from demeanor.core.types import Completion, Decoding, Done, Event, Message, Respond, Text, Turn
from demeanor.evaluation import turn_replay
from demeanor.evaluation.runtime import Services
from demeanor.evaluation.turn_replay import RecordedTurn, ReplayPlan, diff, run
from demeanor.layers.tools.calls import DRY_RUN
from demeanor.report import publish
from demeanor.stack.stack import Stack
from tests.evaluation import clerk, plants
from tests.evaluation.plants import HEALTHY


class Scripted:
    """A runtime that says the seed, and remembers what it was asked."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.asked, self.dry = stack, list[Turn](), list[bool]()

    def respond(self, variant: Stack) -> Respond:
        async def respond(turn: Turn) -> AsyncIterator[Event]:
            self.asked.append(turn)
            self.dry.append(DRY_RUN.get())
            if "crash" in turn.messages[-1].content:
                raise EngineError("sunk")
            yield Text(f"At {turn.decoding.seed}.")
            yield Done("stop")

        return respond

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return plants.stack_of(HEALTHY["as declared"], tmp_path / "desk")


def services(stack: Stack, folder: Path) -> tuple[Services, Scripted]:
    runtime = Scripted(stack)
    return replace(clerk.services(folder), open=lambda wanted: runtime), runtime  # type: ignore[arg-type, return-value]


def recorded(n: int, said: str, asked: str = "When?", user: str = "anonymous") -> RecordedTurn:
    turn = Turn(
        (Message("user", asked),), Decoding(0.3, seed=n), id=f"t{n}", user=user, variant="old", stack_key="k0"
    )
    return RecordedTurn(turn, Completion(said, "stop"))


def test_turns_are_asked_again_as_they_were(stack: Stack, tmp_path: Path) -> None:
    given, runtime = services(stack, tmp_path)
    turns = [recorded(9, "At 9."), recorded(10, "At 11.")]
    found = run(stack, given, tmp_path, "tiny-desk:dpo", turns, ReplayPlan())
    assert [(t.messages, t.decoding) for t in runtime.asked] == [
        (t.turn.messages, t.turn.decoding) for t in turns
    ]
    assert {t.variant for t in runtime.asked} == {"tiny-desk:dpo"}
    assert [t.id for t in runtime.asked] == ["t9~replay", "t10~replay"]
    assert runtime.dry == [True, True]
    assert (found.same, [t.diff for t in found.turns]) == (1, ["At 9.", "At [-11.-]{+10.+}"])
    assert (found.gain, found.scored) == (None, 0)
    run(stack, given, tmp_path, "tiny-desk:dpo", turns, ReplayPlan(run_tools=True))
    assert runtime.dry[2:] == [False, False]


def test_scores_are_paired_by_turn_and_clustered_by_user(stack: Stack, tmp_path: Path) -> None:
    given, _ = services(stack, tmp_path)
    turns = [recorded(9, "No." if n % 10 > 1 else "At 9.", user=f"u{n % 10}") for n in range(40)]
    turns = [t._replace(turn=replace(t.turn, id=f"t{n}")) for n, t in enumerate(turns)]
    plan = ReplayPlan("exact", {"answers": ["At 9."]})
    found = run(stack, given, tmp_path, "tiny-desk", turns, plan)
    assert (found.before, found.after, found.scored) == (0.2, 1.0, 40)
    assert found.gain is not None
    value, low, high = found.gain
    assert value == pytest.approx(0.8)
    assert low is not None
    assert high is not None
    assert 0 < low < 0.8 < high
    alone = run(
        stack,
        given,
        tmp_path,
        "tiny-desk",
        [t._replace(turn=replace(t.turn, user="anonymous")) for t in turns],
        plan,
    )
    assert alone.gain is not None
    assert alone.gain[1] is not None
    assert low < alone.gain[1]  # ten users tell less than forty


def test_a_turn_that_fails_is_one_failure(stack: Stack, tmp_path: Path) -> None:
    given, _ = services(stack, tmp_path)
    turns = [recorded(1, "At 1."), recorded(2, "At 2.", "crash")]
    found = run(stack, given, tmp_path, "tiny-desk", turns, ReplayPlan("exact", {"answers": ["At 1."]}))
    assert (found.failed, found.turns[1].error, found.scored) == (1, "EngineError: sunk", 1)


def test_an_answer_is_kept_as_the_policy_shows_it_and_scored_as_it_is(stack: Stack, tmp_path: Path) -> None:
    given, _ = services(stack, tmp_path)

    async def hidden(turn: Turn, completion: Completion) -> str:
        return "[hidden]"

    plan = ReplayPlan("exact", {"answers": ["At 9."]}, screen_of=lambda runtime, variant: hidden)
    found = run(stack, given, tmp_path, "tiny-desk:dpo", [recorded(9, "No.")], plan)
    assert (found.turns[0].after, found.turns[0].score_after) == ("[hidden]", 1.0)
    written = (tmp_path / f"{found.name}.replay.json").read_text()
    assert "At 9" not in written
    assert json.loads(written)["model"] == "tiny-desk:dpo"


@pytest.mark.parametrize(
    ("plan", "what"),
    [
        (ReplayPlan("exact", {}), "answers"),
        (ReplayPlan("choice", {"choices": ["a"], "right": 0}), "log-probabilities"),
        (ReplayPlan("judged", {"question": "Polite?"}), "evaluation.judge"),
        (ReplayPlan("exakt", {}), "Did you mean"),
    ],
)
def test_a_scorer_that_cannot_score_is_refused_before_anything_is_asked(
    plan: ReplayPlan, what: str, stack: Stack, tmp_path: Path
) -> None:
    given, runtime = services(stack, tmp_path)
    with pytest.raises(UsageError, match=what):
        run(stack, given, tmp_path, "tiny-desk", [recorded(1, "x")], plan)
    assert runtime.asked == []


def test_the_page_shows_what_changed_and_no_text_is_markup(stack: Stack, tmp_path: Path) -> None:
    given, _ = services(stack, tmp_path)
    turns = [recorded(1, "<script>alert(1)</script>", "<b>When</b>?"), recorded(2, "At 2.")]
    found = run(stack, given, tmp_path, "tiny-desk", turns, ReplayPlan("exact", {"answers": ["At 1."]}))
    publish.show_section(tmp_path, found.name, turn_replay.KIND)
    page = (tmp_path / f"{found.name}.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;b&gt;When" in page
    assert "{+" in page


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ("a b c", "a b c", "a b c"),
        ("a b c", "a c", "a [-b -]c"),
        ("a c", "a b c", "a {+b +}c"),
        ("", "x", "{+x+}"),
        ("x", "", "[-x-]"),
    ],
)
def test_a_diff_is_by_words(before: str, after: str, wanted: str) -> None:
    assert diff(before, after) == wanted
