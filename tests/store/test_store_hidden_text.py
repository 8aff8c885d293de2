"""What a policy hides from the model is not in the database either: every place of a request, every event, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from demeanor.core.types import (
    Approvals,
    Citation,
    Decoding,
    Done,
    Event,
    Message,
    OutputFormat,
    Passage,
    Prompted,
    Refusal,
    Text,
    TokenLogprob,
    ToolCall,
    ToolCalled,
    ToolDecision,
    ToolResult,
    ToolSpec,
    Turn,
    Unsupported,
    Usage,
)
from demeanor.layers import compose, policy, record
from demeanor.layers.policy.kept_requests import kept_json
from demeanor.layers.policy.matching import load
from demeanor.store.database import Database, open_url
from tests.conftest import each
from tests.layers.fake_layers import events_of, kit, script

SECRET = "ZQ-4711-KX"
STAGES = ("input", "retrieved", "tool_definition", "tool_call", "tool_result", "output")


def rule(**given: Any) -> dict[str, Any]:
    standard = {"name": "code", "on": list(STAGES), "pattern": r"ZQ-\d{4}-KX", "action": "redact"}
    return standard | {"reason": "a code", "reply": "[code]"} | given


def layers(folder: Path, *rules: dict[str, Any], **recording: Any) -> list[tuple[Any, Any]]:
    (folder / "policy.yaml").write_text(yaml.safe_dump({"rules": [*rules]}))
    return [(record.Spec(**recording), record), (policy.Spec(), policy)]


def told(database: Database) -> str:
    """Everything that the database holds, as text."""
    rows = (*database.rows("SELECT * FROM turns"), *database.rows("SELECT * FROM events"))
    return "\n".join(str([row[key] for key in row.keys()]) for row in rows)  # noqa: SIM118


def recorded(url: str, folder: Path, stack: list[tuple[Any, Any]], turn: Turn, *events: Event) -> str:
    """What the database holds after a turn, and after its file has been closed the bytes of the file too."""
    with closing(open_url(url, root=folder)) as database:
        given = kit(folder, open_store=lambda address: database.record)
        asyncio.run(events_of(compose(stack, script([*events, Done("stop")]), given), turn))
        found = told(database)
    return found + "".join(path.read_bytes().decode("latin-1") for path in folder.glob("*.db*"))


@pytest.fixture
def url(database_url: str, tmp_path: Path) -> str:
    return database_url


def asked(*messages: Message, **given: Any) -> Turn:
    decoding = given.pop("decoding", Decoding())
    return Turn(messages or (Message("user", "Hello"),), decoding, id="chat-1", user="ann", **given)


ESCAPED = json.dumps({"a": ["\\u005a" + SECRET[1:]]}).replace("\\\\u", "\\u")
PLACES: dict[str, Turn] = {
    "user": asked(Message("user", f"My code is {SECRET}, thanks.")),
    "earlier user": asked(Message("user", SECRET), Message("assistant", "Ok."), Message("user", "And?")),
    "assistant": asked(Message("user", "a"), Message("assistant", f"It is {SECRET}"), Message("user", "b")),
    "reasoning": asked(
        Message("user", "a"), Message("assistant", "Hm", reasoning=f"so {SECRET}"), Message("user", "b")
    ),
    "name": asked(Message("user", "a", name=SECRET)),
    "passage": asked(Message("data", f"Manual: {SECRET}", name=SECRET), Message("user", "a")),
    "call": asked(
        Message("user", "a"),
        Message("assistant", "", tool_calls=(ToolCall(SECRET, "look", json.dumps({SECRET: [SECRET]})),)),
        Message("tool", f"found {SECRET}", tool_call_id=SECRET),
        Message("user", "b"),
    ),
    "escaped call": asked(
        Message("user", "a"),
        Message("assistant", "", tool_calls=(ToolCall("c", "look", ESCAPED),)),
        Message("tool", "found", tool_call_id="c"),
    ),
    "tool": asked(tools=(ToolSpec("look", f"Finds {SECRET}", {"type": "object"}),)),
    "metadata": asked(metadata={"note": f"about {SECRET}", "about": json.dumps({"instructions": SECRET})}),
    "raw": asked(Message("user", f"Say {SECRET}"), raw=tuple(SECRET.encode())),
    "approvals": asked(
        Message("user", "a"), approvals=Approvals((), 0, (Message("assistant", f"so {SECRET}"),))
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_hidden_from_the_model_is_not_stored(place: str, url: str, tmp_path: Path) -> None:
    found = recorded(url, tmp_path, layers(tmp_path, rule()), PLACES[place], Text("Fine."), Usage(3, 2))
    assert ("Fine." in found) == (place != "escaped call"), "a match that JSON escapes hide ends the turn"
    assert SECRET not in found
    assert str(list(SECRET.encode())).strip("[]") not in found, "token ids of raw text say it too"
    assert "[code]" in found or place in ("escaped call", "raw", "call", "approvals")


def test_a_developers_text_is_hidden_where_a_rule_reads_it(tmp_path: Path) -> None:
    operator = rule(trust="system", on="input")
    form = OutputFormat("json_schema", json.dumps({"enum": [SECRET]}))
    turns = {
        "system": asked(Message("system", f"The code is {SECRET}"), Message("user", "a")),
        "tool": asked(tools=(ToolSpec(SECRET, SECRET, {"properties": {SECRET: {"enum": [SECRET]}}}),)),
        "format": asked(decoding=Decoding(form=form)),
    }
    for name, turn in each(turns.items()):
        found = recorded(f"sqlite:///{name}.db", tmp_path, layers(tmp_path, operator), turn, Text("Fine."))
        assert "chat-1" in found, name
        assert SECRET not in found, name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("action", ["redact", "rewrite"])
def test_a_rule_of_one_stage_hides_what_that_stage_reads(stage: str, action: str, tmp_path: Path) -> None:
    changed = {"action": action} | ({"template": "#{last:2}", "reply": None} if action == "rewrite" else {})
    one = {k: v for k, v in rule(on=stage, **changed).items() if v is not None}
    turn = {
        "input": PLACES["user"],
        "retrieved": PLACES["passage"],
        "tool_definition": PLACES["tool"],
        "tool_call": PLACES["call"],
        "tool_result": PLACES["call"],
        "output": PLACES["assistant"],
    }[stage]
    found = recorded("sqlite:///t.db", tmp_path, layers(tmp_path, one), turn, Text("Fine."))
    assert ("[code]" if action == "redact" else "#KX") in found
    if stage != "tool_result" and stage != "tool_call":  # that turn has both, and one rule reads one of them
        assert SECRET not in found


EVENTS: tuple[Event, ...] = (
    Passage(SECRET, f"text {SECRET}", 1.0, SECRET),
    Prompted((Message("system", f"Be kind to {SECRET}"),)),
    ToolCalled(ToolCall("c", "look", json.dumps({"a": SECRET}))),
    ToolResult("c", "look", f"found {SECRET}"),
    ToolDecision("denied", (SECRET,), "c", f"about {SECRET}"),
    Citation(0, 1, SECRET, cited_text=SECRET),
    Unsupported(0, 1, "unknown", SECRET),
    Text("ZQ-47", logprobs=(TokenLogprob("ZQ-47", -1.0, ((SECRET, -1.0),)),)),
    Text("11-KX."),
)


@pytest.mark.parametrize("event", EVENTS[:7], ids=lambda e: type(e).__name__)
def test_no_event_of_the_trace_holds_it(event: Event, tmp_path: Path) -> None:
    events = [event, Text("Fine."), Usage(1, 1)]
    found = recorded("sqlite:///t.db", tmp_path, layers(tmp_path, rule()), PLACES["user"], *events)
    assert "Fine." in found
    assert SECRET not in found


def test_neither_does_an_answer_in_pieces_nor_a_refusal_from_inside(tmp_path: Path) -> None:
    for name, events in each(
        {"pieces": EVENTS[7:], "refusal": [Refusal("tools", "r", SECRET, f"No {SECRET}")]}.items()
    ):
        found = recorded(f"sqlite:///{name}.db", tmp_path, layers(tmp_path, rule()), PLACES["user"], *events)
        assert SECRET not in found, name


def test_a_refused_request_is_kept_for_operators_without_what_other_rules_hide(tmp_path: Path) -> None:
    stop = rule(name="stop", on="input", pattern="(?i)open the gate", action="refuse", reply="No.")
    turn = asked(Message("user", f"Open the gate with {SECRET}"))
    found = recorded("sqlite:///t.db", tmp_path, layers(tmp_path, stop, rule()), turn)
    assert "Open the gate with [code]" in found, "what was refused can be read and marked"
    assert SECRET not in found


def test_a_turn_that_breaks_off_is_stored_without_it_too(tmp_path: Path) -> None:
    async def inner(turn: Turn) -> AsyncIterator[Event]:
        yield Text("It leaves from the old harbour, as every day, ")
        await asyncio.Event().wait()

    async def left(database: Database) -> None:
        given = kit(tmp_path, open_store=lambda address: database.record)
        events = compose(layers(tmp_path, rule()), inner, given)(PLACES["user"])
        async for event in events:
            if isinstance(event, Text):
                break
        await events.aclose()  # type: ignore[attr-defined]

    with closing(open_url("sqlite:///t.db", root=tmp_path)) as database:
        asyncio.run(left(database))
        assert "chat-1" in told(database)
        assert SECRET not in told(database)


def test_raw_requests_are_an_explicit_choice(tmp_path: Path) -> None:
    stack = layers(tmp_path, rule(), raw=True)
    assert SECRET in recorded("sqlite:///t.db", tmp_path, stack, PLACES["user"], Text("Fine."))


def test_the_model_reads_the_same_as_before_and_what_nothing_hides_is_kept_as_it_was_sent(
    tmp_path: Path,
) -> None:
    seen: list[Turn] = []
    kept: list[Turn] = []

    async def store(turn: Turn, events: Sequence[Event], started: Any, finished: Any) -> None:
        kept.append(turn)

    given = kit(tmp_path, open_store=lambda address: store)
    turn = asked(
        Message("system", f"The code is {SECRET}"),
        Message("user", "Hi", name="ann"),
        metadata={"user": "ann", "n": "1"},
        tools=(ToolSpec("look", "Finds", {"properties": {"a": {"enum": [1, 2.5, None, True]}}}),),
    )
    answer = script([Text("Fine."), Done("stop")], seen=seen)
    asyncio.run(events_of(compose(layers(tmp_path, rule(on="input")), answer, given), turn))
    assert kept == [turn]
    assert seen == [turn]


def test_a_judge_that_hides_a_text_is_asked_once_and_its_failure_hides_too(tmp_path: Path) -> None:
    asked_about: list[str] = []

    def connect(address: str, model: str, key: str | None, timeout_s: float) -> Any:
        async def respond(turn: Turn) -> AsyncIterator[Event]:
            asked_about.append(turn.messages[-1].content)
            fails = "broken" in asked_about[-1]
            yield Text("perhaps" if fails else "yes" if SECRET in asked_about[-1] else "no")
            yield Done("stop")

        return respond

    judge = {"url": "http://127.0.0.1:1/v1", "model": "m", "question": "A code?"}
    one = {k: v for k, v in rule(on="input", judge=judge).items() if k != "pattern"}
    rows: list[Turn] = []

    async def store(turn: Turn, events: Sequence[Event], started: Any, finished: Any) -> None:
        rows.append(turn)

    given = kit(tmp_path, open_store=lambda address: store, connect=connect)
    respond = compose(layers(tmp_path, one), script([Done("stop")]), given)
    for text in (f"It is {SECRET}", "nothing", "broken thing"):
        asyncio.run(events_of(respond, asked(Message("user", text))))
    assert [turn.messages[0].content for turn in rows] == ["[code]", "nothing", "[code]"]
    assert len([text for text in asked_about if SECRET in text]) == 1


def test_conversations_of_the_chat_page_are_kept_without_it(tmp_path: Path) -> None:
    layers(tmp_path, rule())
    rules = load(tmp_path / "policy.yaml")
    given = {"title": SECRET, "turns": [{"text": f"x {SECRET}", "n": 3, "on": True, "none": None}]}
    assert asyncio.run(kept_json(given, rules)) == {
        "title": "[code]",
        "turns": [{"text": "x [code]", "n": 3, "on": True, "none": None}],
    }
