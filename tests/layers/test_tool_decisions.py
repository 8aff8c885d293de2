"""Decisions of the tools layer: who is asked, what a search finds, what a budget cuts, and that each is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_layers import ask, events_of, kit, only, script
from pydantic import ValidationError

import demeanor
from demeanor.core.types import (
    Approval,
    Approvals,
    Done,
    Event,
    Message,
    Text,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    ToolSpec,
    Turn,
    fold,
)
from demeanor.layers import tools
from demeanor.layers.tools import LoadedTool, tool_search
from demeanor.layers.tools.functions import load_functions
from demeanor.layers.tools.running import ASKED
from tests.conftest import each

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}}


def made(name: str = "pay", id: str = "1", **arguments: Any) -> ToolCalled:
    return ToolCalled(ToolCall(id, name, json.dumps(arguments)))


def desk(*rounds: Any, seen: list[Turn] | None = None, ran: list[Any] | None = None, **settings: Any) -> Any:
    """A layer with `pay` and `look` around scripted rounds; `ran` collects what was run."""
    log = ran if ran is not None else []

    def tool(name: str) -> LoadedTool:
        def run(arguments: Mapping[str, Any]) -> str:
            log.append((name, dict(arguments)))
            return f"{name} {'x' * arguments.get('n', 0)}"

        return LoadedTool(ToolSpec(name, f"Does {name}.", NUMBER), run)

    known = {name: tool(name) for name in ("pay", "look")}
    spec = tools.Spec.model_construct(allow=("pay", "look"), **settings)
    return tools.wrap(spec, script(*rounds, seen=seen), kit(tools=known))


def verdicts(events: list[Event]) -> list[str]:
    return [event.verdict for event in only(events, ToolDecision)]


DONE = [Text("ok"), Done("stop")]


async def test_a_call_that_waits_ends_the_turn_and_others_of_its_round_are_run() -> None:
    ran: list[Any] = []
    respond = desk([made("look", "1"), made("pay", "2"), Done("tool_calls")], DONE, ran=ran, approve=("pay",))
    events = await events_of(respond)
    assert ran == [("look", {})]
    assert [c.name for c in fold(events).tool_calls] == ["pay"]
    assert events[-1] == Done("tool_calls", by="tools")
    assert verdicts(events) == ["offered", "run", "waiting"]
    (waiting,) = [d for d in only(events, ToolDecision) if d.verdict == "waiting"]
    assert (waiting.tools, waiting.call_id, waiting.detail) == (("pay",), "2", ASKED)


@pytest.mark.parametrize("ids", [("1", "1"), ("", "2")])
async def test_calls_that_wait_need_ids_of_their_own(ids: tuple[str, str]) -> None:
    """One decision must never stand for two calls."""
    ran: list[Any] = []
    calls = [made("pay", ids[0], n=1), made("pay", ids[1], n=2)]
    events = await events_of(desk([*calls, Done("tool_calls")], DONE, ran=ran, approve=("pay",)))
    assert "malformed" in verdicts(events)
    assert ran == []


async def test_a_rule_of_the_policy_can_ask_about_one_call() -> None:
    """It marks the call on its way out of the model."""

    called = ToolCalled(ToolCall("1", "pay", "{}"), approval="rule big-sums")
    ran: list[Any] = []
    events = await events_of(desk([called, Done("tool_calls")], DONE, ran=ran))
    assert [d.detail for d in only(events, ToolDecision)][-1] == "rule big-sums"
    assert ran == []


def conversation(*calls: ToolCall) -> tuple[Message, ...]:
    return Message("user", "pay"), Message("assistant", "", tool_calls=calls)


async def test_an_approval_runs_the_call_as_it_stands_and_a_denial_does_not() -> None:
    ran: list[Any] = []
    seen: list[Turn] = []
    calls = ToolCall("1", "pay", '{"n": 1}'), ToolCall("2", "pay", '{"n": 2}')
    approvals = Approvals((Approval("1", True), Approval("2", False, "too much")))
    turn = Turn(conversation(*calls), ask().decoding, approvals=approvals)
    events = await events_of(desk(DONE, ran=ran, seen=seen, approve=("pay",)), turn)
    assert ran == [("pay", {"n": 1})]
    assert verdicts(events) == ["offered", "approved", "denied", "run"]
    assert [m.content for m in seen[0].messages if m.role == "tool"] == [
        "pay x",
        "error: the user did not allow this call, so it was not run; the person said: too much",
    ]
    assert seen[0].approvals is None
    assert fold(events).tool_calls == ()


async def test_a_call_that_nobody_decided_on_is_not_run_beside_one_that_was() -> None:
    ran: list[Any] = []
    calls = ToolCall("1", "pay", '{"n": 1}'), ToolCall("2", "pay", '{"n": 2}')
    turn = Turn(conversation(*calls), ask().decoding, approvals=Approvals((Approval("1", True),)))
    events = await events_of(desk(DONE, ran=ran, approve=("pay",)), turn)
    assert ran == [("pay", {"n": 1})]
    assert [result.call_id for result in only(events, ToolResult)] == ["1"]


async def test_a_tool_that_no_search_has_found_cannot_be_called_by_a_guessed_name() -> None:
    ran: list[Any] = []
    events = await events_of(desk([made("pay"), Done("tool_calls")], DONE, ran=ran, search_above=1))
    assert verdicts(events)[-1] == "malformed"
    assert ran == []


async def test_a_call_in_the_history_is_never_run_without_an_approval() -> None:
    ran: list[Any] = []
    turn = Turn(conversation(ToolCall("1", "pay", "{}")), ask().decoding)
    await events_of(desk(DONE, ran=ran), turn)
    assert ran == []


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (ToolCall("1", "pay", '{"n": "x"}'), "should be integer"),
        (ToolCall("1", "gone", "{}"), "unknown tool 'gone'"),
    ],
)
async def test_an_approved_call_is_still_checked(call: ToolCall, told: str) -> None:
    ran: list[Any] = []
    turn = Turn(conversation(call), ask().decoding, approvals=Approvals((Approval("1", True),)))
    events = await events_of(desk(DONE, ran=ran), turn)
    (result,) = only(events, ToolResult)
    assert told in result.content
    assert ran == []


async def test_functions_say_themselves_that_they_are_dangerous(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import demeanor\n\n\n@demeanor.needs_approval\ndef wipe(n: int) -> str:\n    '''Deletes.'''\n    return 'gone'\n\n\n"
        "def look(n: int) -> str:\n    '''Looks.'''\n    return 'seen'\n"
    )
    found = load_functions(path)
    assert {name: bool(tool.needs_approval) for name, tool in found.items()} == {"wipe": True, "look": False}
    layer = tools.wrap(
        tools.Spec(module="mine.py"), script([made("wipe", n=1), Done("tool_calls")], DONE), kit(tmp_path)
    )
    assert "waiting" in verdicts(await events_of(layer))
    assert demeanor.needs_approval(ask) is ask
    del ask.demeanor_needs_approval  # type: ignore[attr-defined]


# ---- budgets ----


async def test_a_turn_has_so_many_calls() -> None:
    ran: list[Any] = []
    calls = [made("look", str(i)) for i in range(3)]
    events = await events_of(desk([*calls, Done("tool_calls")], DONE, ran=ran, max_calls=2))
    assert len(ran) == 2
    assert verdicts(events) == ["offered", "run", "run", "budget_spent"]
    assert only(events, ToolResult)[-1].content == "error: too many calls in this turn"


async def test_a_turn_reads_so_many_characters_of_results() -> None:
    events = await events_of(
        desk(
            [made("look", "1", n=10), made("look", "2", n=10), Done("tool_calls")],
            [made("look", "3", n=1), Done("tool_calls")],
            DONE,
            max_total_chars=20,
        )
    )
    first, second, third = [result.content for result in only(events, ToolResult)]
    assert first == "look xxxxxxxxxx"
    assert second.startswith("look  [cut")
    assert third == "error: the results of this turn are as long as they may be"
    assert verdicts(events)[-1] == "budget_spent"


async def test_all_calls_of_a_turn_share_its_time() -> None:
    @dataclass
    class Ticking:
        now_s: float = 0.0

        def __call__(self) -> float:
            self.now_s += 1.0
            return self.now_s

    known = {"look": LoadedTool(ToolSpec("look", "Looks.", NUMBER), lambda arguments: "seen")}
    spec = tools.Spec.model_construct(allow=("look",), max_total_s=0.5)
    rounds = ([made("look", "1"), Done("tool_calls")], [made("look", "2"), Done("tool_calls")], DONE)
    events = await events_of(tools.wrap(spec, script(*rounds), kit(tools=known, clock=Ticking())))  # type: ignore[arg-type]
    assert [result.error for result in only(events, ToolResult)] == [False, True]
    assert "no time is left" in only(events, ToolResult)[1].content


@pytest.mark.parametrize(
    "settings",
    [
        {"allow": ["calculator"], "lock": "x.json"},
        {"allow": ["calculator"], "search_results": 3},
        {"servers": []},
        {"servers": [{"name": "a", "command": ["x"]}, {"name": "a", "command": ["y"]}]},
        {"allow": ["calculator"], "approve": ["calculator", "calculator"]},
        {"allow": ["calculator"], "max_calls": 0},
    ],
)
def test_settings_that_nothing_would_read_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        tools.Spec.model_validate(settings)


def test_a_tool_to_approve_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    (problem,) = tools.check(tools.Spec(allow=("calculator",), approve=("calculatr",)), tmp_path)
    assert "Did you mean 'calculator'?" in str(problem)


# ---- search ----


def index(**about: str) -> tool_search.ToolIndex:
    return tool_search.ToolIndex(
        {name: LoadedTool(ToolSpec(name, text, NUMBER), lambda arguments: "") for name, text in about.items()}
    )


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("create an issue", "createIssue"),
        ("list the open pull requests", "list_pull_requests"),
        ("what is the weather in Paris", "forecast"),
        ("FORECASTS", "forecast"),
    ],
)
def test_search_finds_tools_by_names_in_any_case_and_by_descriptions(query: str, best: str) -> None:
    found = index(
        createIssue="Opens a ticket in the tracker.",
        list_pull_requests="Lists what waits for review.",
        forecast="Tells the weather of the next days in a city.",
        wipe="Deletes a file.",
    ).best(query, 2)
    assert found[0] == best


def test_search_finds_nothing_without_a_common_word_and_is_stable() -> None:
    found = index(a="Does a thing.", b="Does a thing.")
    assert found.best("zebra", 5) == []
    assert found.best("thing", 5) == ["a", "b"]
    assert found.best("", 5) == []


async def test_tools_that_the_conversation_called_before_need_no_search() -> None:
    seen: list[Turn] = []
    turn = Turn(
        (*conversation(ToolCall("1", "look", "{}")), Message("tool", "seen", tool_call_id="1")),
        ask().decoding,
    )
    await events_of(desk(DONE, seen=seen, search_above=1), turn)
    assert [tool.name for tool in each(seen[0].tools)] == ["search_tools", "look"]


async def test_a_query_is_checked_like_any_argument() -> None:
    events = await events_of(desk([made("search_tools", query=5), Done("tool_calls")], DONE, search_above=1))
    (result,) = only(events, ToolResult)
    assert result.content == "error: arguments.query should be string, got 5"
    assert verdicts(events)[-1] == "malformed"


def test_equal_files_in_two_folders_keep_their_own_state_and_place(tmp_path: Path) -> None:
    text = 'from pathlib import Path\n\n\ndef where() -> str:\n    """Say where this stands."""\n    return Path(__file__).parent.name\n'
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tools.py").write_text(text)
    found = [load_functions(tmp_path / name / "tools.py")["where"].run({}) for name in ("a", "b")]
    assert found == ["a", "b"]
