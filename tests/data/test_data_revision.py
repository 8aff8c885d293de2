"""Rows that a model writes and mends itself: what it is asked, what is written, that a kill or a failure loses nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError, SpecError
from demeanor.core.types import (
    Decoding,
    Done,
    Event,
    Example,
    Message,
    Preference,
    Text,
    ToolCall,
    ToolCalled,
    Turn,
)
from demeanor.data import sources
from demeanor.data.revision import (
    CONSTITUTION,
    Principle,
    Revised,
    RevisionPlan,
    RevisionPrompt,
    answers_file,
    distinct,
    read_constitution,
    revise,
    revise_one,
)
from demeanor.stack.schema import Source
from tests.conftest import each

HARM = Principle(name="harm", critique="What is harmful?", revision="Write it without harm.")
Says = Callable[[Turn], str]


class Model:
    """A model that says a function of the turn."""

    def __init__(self, says: Says) -> None:
        self.says, self.turns = says, list[Turn]()

    async def __call__(self, turn: Turn) -> AsyncIterator[Event]:
        self.turns.append(turn)
        await asyncio.sleep(0)
        yield Text(self.says(turn))
        yield Done("stop")


def script(turn: Turn) -> str:
    last = turn.messages[-1].content
    return {HARM.critique: "It says how.", HARM.revision: "I can help you repair it."}.get(
        last, f"Answer to {last}"
    )


def plan(model: Any, **more: Any) -> RevisionPlan:
    settings = {"principles": (HARM,), "rounds": 1, **more}
    return RevisionPlan(model, Decoding(), {"model": "fake"}, **settings)


def asked(*texts: str) -> list[RevisionPrompt]:
    return [RevisionPrompt(f"id-{text}", (Message("user", text),), source=f"rows:{text}") for text in texts]


def run(the_plan: RevisionPlan, prompts: list[RevisionPrompt], out: Path, **more: Any) -> Revised:
    return asyncio.run(revise(the_plan, prompts, out, show=lambda *_: None, **more))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- what is asked and written


def test_an_answer_is_criticized_by_a_principle_and_mended() -> None:
    model = Model(script)
    row = asyncio.run(revise_one(plan(model), asked("How?")[0]))
    assert row["first"] == "Answer to How?"
    assert row["completion"] == "I can help you repair it."
    assert row["revisions"] == [
        {"principle": "harm", "critique": "It says how.", "revision": "I can help you repair it."}
    ]
    assert (row["source"], row["made_by"]) == ("rows:How?", {"model": "fake"})
    contents = [[m.content for m in turn.messages] for turn in model.turns]
    assert contents == [
        ["How?"],
        ["How?", "Answer to How?", HARM.critique],
        ["How?", "Answer to How?", HARM.critique, "It says how.", HARM.revision],
    ]


def test_each_round_mends_the_answer_before() -> None:
    model = Model(lambda turn: f"v{sum(m.role == 'assistant' for m in turn.messages)}-{len(turn.messages)}")
    row = asyncio.run(revise_one(plan(model, rounds=3), asked("How?")[0]))
    assert len(row["revisions"]) == 3
    assert len(model.turns) == 1 + 2 * 3
    second = model.turns[3].messages
    assert second[1].content == row["revisions"][0]["revision"]


def test_the_specification_is_in_the_context_and_not_in_the_row() -> None:
    model = Model(script)
    row = asyncio.run(revise_one(plan(model, rounds=0, specification="Rule 7: be brief."), asked("How?")[0]))
    (turn,) = model.turns
    assert [m.role for m in turn.messages] == ["system", "user"]
    assert turn.messages[0].content.startswith("Rule 7: be brief.")
    assert row["prompt"] == [{"role": "user", "content": "How?"}]
    assert "Rule 7" not in json.dumps({k: row[k] for k in ("prompt", "completion", "first")})


def test_rows_train_by_imitation_as_they_are(tmp_path: Path) -> None:
    run(plan(Model(script)), asked("a", "b"), tmp_path / "rows.jsonl")
    found = sources.rows(Source(source="rows.jsonl"), root=tmp_path)
    assert [type(row) for row in found] == [Example, Example]
    first = found[0]
    assert isinstance(first, Example)
    assert [m.content for m in first.messages] == ["a", "I can help you repair it."]
    assert first.trained_from == 1


def test_the_first_answer_is_what_a_preference_rejects(tmp_path: Path) -> None:
    run(plan(Model(script)), asked("a"), tmp_path / "rows.jsonl")
    renamed = Source(source="rows.jsonl", columns={"chosen": "completion", "rejected": "first"})
    (pair,) = sources.rows(renamed, root=tmp_path, want="preferences")
    assert isinstance(pair, Preference)
    assert [c[0].content for c in pair.completions] == ["I can help you repair it.", "Answer to a"]
    assert [m.content for m in pair.prompt] == ["a"]


def test_an_empty_revision_keeps_the_answer_and_an_empty_answer_fails() -> None:
    mute = Model(lambda turn: "" if turn.messages[-1].content == HARM.revision else "Something.")
    assert asyncio.run(revise_one(plan(mute), asked("a")[0]))["completion"] == "Something."
    with pytest.raises(DataError, match="the model's answer is empty"):
        asyncio.run(revise_one(plan(Model(lambda turn: "  ")), asked("a")[0]))


def test_a_call_of_a_tool_is_no_answer() -> None:
    async def calls(turn: Turn) -> AsyncIterator[Event]:
        yield ToolCalled(ToolCall("1", "calculator", "{}"))
        yield Done("tool_calls")

    with pytest.raises(DataError, match="called a tool; wanted text"):
        asyncio.run(revise_one(plan(calls), asked("a")[0]))


def test_draws_depend_on_the_seed_and_the_prompt_alone(tmp_path: Path) -> None:
    """In another order, and beside other prompts, a prompt has the same seeds and the same principle."""
    principles = tuple(HARM.model_copy(update={"name": str(n)}) for n in range(9))

    def seeds(texts: str, seed: int = 0) -> tuple[dict[str, list[int | None]], list[str]]:
        model = Model(lambda turn: f"s{turn.decoding.seed}")
        out = tmp_path / f"{texts}-{seed}.jsonl"
        run(plan(model, principles=principles, rounds=2, seed=seed), asked(*texts), out)
        drawn: dict[str, list[int | None]] = {}
        for turn in model.turns:
            drawn.setdefault(turn.messages[0].content, []).append(turn.decoding.seed)
        return drawn, [r["principle"] for row in rows(out) if row["id"] == "id-c" for r in row["revisions"]]

    one, other, third = seeds("abc"), seeds("ca"), seeds("abc", seed=1)
    assert one[0]["c"] == other[0]["c"]
    assert one[1] == other[1]
    assert one[0]["a"] != one[0]["b"]
    assert one[0]["c"] != third[0]["c"]


# ---- what is kept


def test_rows_stand_in_the_order_of_the_prompts_whatever_ends_first(tmp_path: Path) -> None:
    async def slow(turn: Turn) -> AsyncIterator[Event]:
        await asyncio.sleep(0.03 if turn.messages[0].content == "a" else 0)
        yield Text("yes")
        yield Done("stop")

    run(plan(slow, rounds=0), asked("a", "b", "c"), tmp_path / "r.jsonl")
    assert [row["id"] for row in rows(tmp_path / "r.jsonl")] == ["id-a", "id-b", "id-c"]
    assert [row["id"] for row in rows(answers_file(tmp_path / "r.jsonl"))][-1] == "id-a"


def test_one_failure_loses_nothing_else_and_is_tried_again(tmp_path: Path) -> None:
    def fails(turn: Turn) -> str:
        if turn.messages[0].content == "b":
            raise OSError("down")
        return "yes"

    out = tmp_path / "r.jsonl"
    done = run(plan(Model(fails)), asked("a", "b", "c"), out)
    assert done == Revised(2, 0, 1, "rows:b: down", 0)
    assert [row["id"] for row in rows(out)] == ["id-a", "id-c"]
    again = Model(lambda turn: "later")
    assert run(plan(again), asked("a", "b", "c"), out) == Revised(3, 0, 0, "", 2)
    assert {turn.messages[0].content for turn in again.turns} == {"b"}
    assert [row["completion"] for row in rows(out)] == ["yes", "later", "yes"]


def test_an_answer_that_a_kill_tore_is_asked_again(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    run(plan(Model(script)), asked("a", "b"), out)
    whole, work = out.read_bytes(), answers_file(out)
    work.write_bytes(work.read_bytes()[:-7])
    out.unlink()
    model = Model(script)
    assert run(plan(model), asked("a", "b"), out).kept_from_before == 1
    assert len(model.turns) == 3
    assert out.read_bytes() == whole
    assert len(rows(work)) == 2


def test_answers_made_in_another_way_are_not_mixed(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    run(plan(Model(script)), asked("a"), out)
    other = RevisionPlan(Model(script), Decoding(), {"model": "other"})
    with pytest.raises(DataError, match=r"was made by .*fake.* and this call is .*other.*--force"):
        run(other, asked("b"), out)


def test_a_judge_keeps_what_follows_the_specification(tmp_path: Path) -> None:
    async def accept(messages: Any, answer: str) -> bool:
        if messages[0].content == "c":
            raise DataError("no verdict")
        return bool(messages[0].content == "a")

    out = tmp_path / "r.jsonl"
    done = run(plan(Model(script), accept=accept), asked("a", "b", "c"), out)
    assert (done.written, done.dropped, done.failed, done.first_error) == (1, 1, 1, "rows:c: no verdict")
    assert [row["id"] for row in rows(out)] == ["id-a"]


def test_the_same_prompt_is_answered_once() -> None:
    assert [p.id for p in distinct(iter(asked("a", "b", "a", "c")), None)] == ["id-a", "id-b", "id-c"]
    assert [p.id for p in distinct(iter(asked("a", "a", "b", "c")), 2)] == ["id-a", "id-b"]


def test_only_so_many_are_asked_at_the_same_time(tmp_path: Path) -> None:
    running = most = 0

    async def counts(turn: Turn) -> AsyncIterator[Event]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        yield Text("yes")
        yield Done("stop")

    run(plan(counts, rounds=0), asked(*"abcdefgh"), tmp_path / "r.jsonl", at_once=3)
    assert most == 3


# ---- the constitution


def test_the_constitution_that_comes_along_covers_harm_and_needless_refusal() -> None:
    found = {principle.name for principle in read_constitution(CONSTITUTION).principles}
    assert {"harm", "needless refusal", "honesty"} <= found
    assert all(p.critique and p.revision for p in each(read_constitution(CONSTITUTION).principles))


def test_a_constitution_with_a_mistake_says_where(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("principles:\n- {name: a, critique: b}\n")
    with pytest.raises(SpecError, match=r"c\.yaml: principles\.0\.revision: Field required"):
        read_constitution(tmp_path / "c.yaml")
