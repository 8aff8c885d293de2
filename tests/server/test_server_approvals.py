"""Approvals end to end: a real tools layer behind the real app; what is shown, what runs, and every way to cheat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses.response_output_item import McpApprovalRequest
from scripted import Scripted

from demeanor.core.errors import RequestError
from demeanor.core.types import (
    Done,
    Event,
    Respond,
    Text,
    ToolCall,
    ToolCalled,
    ToolSpec,
    Turn,
    Usage,
)
from demeanor.layers import Kit, tools
from demeanor.layers.tools import LoadedTool
from demeanor.server.application import app
from demeanor.server.approvals import Approver, LocalApprovals
from demeanor.server.auth import KeyRing
from demeanor.server.responses_answer import OutputApprovalRequest
from demeanor.store.database import Database, open_url
from demeanor.store.keys import create
from demeanor.store.lineage import forget, stored
from demeanor.store.waiting_approvals import TOLD_S, KeptApproval, StoredApprovals
from tests.conftest import each

PARAMETERS = {"type": "object", "properties": {"order": {"type": "integer"}}, "required": ["order"]}
REFUND, LOOKUP = (
    ToolSpec("refund", "Pays money back.", PARAMETERS),
    ToolSpec("lookup", "Finds an order.", PARAMETERS),
)


class Desk(Scripted):
    """The model looks the order up, then wants to refund it, then says what came of it; refund waits for a person."""

    def __init__(self, path: Path | None = None, **settings: Any) -> None:
        super().__init__()
        self.ran: list[Mapping[str, Any]] = []
        self.model_read: list[Turn] = []
        self.fails: RequestError | None = None
        if path is not None:
            self.database, self.records = Database(path), True
        else:
            self.records = False
        tool_set = {
            "refund": LoadedTool(REFUND, self._refund),
            "lookup": LoadedTool(LOOKUP, lambda arguments: f"order {arguments['order']}: 20 EUR"),
        }
        spec = tools.Spec.model_construct(allow=("refund", "lookup"), approve=("refund",), **settings)
        self.layer = tools.wrap(spec, self._model, kit(tool_set))

    def _refund(self, arguments: Mapping[str, Any]) -> str:
        self.ran.append(arguments)
        return f"refunded {arguments['order']}"

    async def _model(self, turn: Turn) -> AsyncIterator[Event]:
        self.model_read.append(turn)
        last, calls = turn.messages[-1], [c for m in turn.messages for c in m.tool_calls]
        if last.role == "tool" and calls[-1].name == "refund":
            yield Text(f"I read: {last.content}")
            yield Usage(9, 2)
            yield Done("stop")
            return
        name = "refund" if calls or "now" in last.content else "lookup"
        if name == "refund":
            yield Text("Let me pay. ")
        yield ToolCalled(ToolCall(f"call_{len(self.model_read)}", name, '{"order": 7}'))
        if "both" in last.content:
            yield ToolCalled(ToolCall("theirs", "mail", "{}"))
        yield Usage(5, 3)
        yield Done("tool_calls")

    def approval_store(self) -> StoredApprovals | None:  # type: ignore[override]
        return None if self.database is None else StoredApprovals(self.database)

    def respond(self, model_id: str) -> Respond:
        self.card(model_id)

        async def respond(turn: Turn) -> AsyncIterator[Event]:
            if self.fails is not None:
                raise self.fails
            events: list[Event] = []
            async for event in self.layer(turn):
                events.append(event)
                if isinstance(event, Done) and self.database is not None:
                    await self.database.record(turn, events, datetime.now(UTC), datetime.now(UTC))
                yield event

        return respond


def kit(tool_set: Mapping[str, LoadedTool]) -> Kit:
    def nothing(*_: Any) -> Any:
        raise AssertionError

    return Kit(
        root=Path("."),
        clock=lambda: 0.0,
        now=lambda: datetime.now(UTC),
        count_tokens=lambda messages, offered: 0,
        tools=tool_set,
        open_index=nothing,
        open_store=nothing,
    )


class Time:
    now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


def client_of(desk: Desk, keys: Any = None, time: Time | None = None, **about: Any) -> httpx.AsyncClient:
    clock = time or Time()
    made = app(desk, keys=keys, now=clock, approver=Approver(now=clock), **about)
    return httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://localhost")


ASK = {"model": "harbour-desk", "messages": [{"role": "user", "content": "refund order 7"}]}


async def post(
    client: httpx.AsyncClient, body: Mapping[str, Any], path: str = "/v1/chat/completions", **kw: Any
) -> Any:
    response = await client.post(path, json=body, **kw)
    return response.status_code, response.json()


async def asked(
    client: httpx.AsyncClient, body: Mapping[str, Any] = ASK, **kw: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """An answer that waits, and the request that goes on from it with every call approved."""
    status, answer = await post(client, body, **kw)
    assert status == 200, answer
    (waiting,) = answer["demeanor"]["approvals"]
    decisions = [{"call_id": call["id"], "approve": True} for call in waiting["calls"]]
    messages = [*body["messages"], answer["choices"][0]["message"]]
    return answer, {
        **body,
        "messages": messages,
        "approval": {"token": waiting["token"], "decisions": decisions},
    }


async def test_a_dangerous_call_is_shown_and_not_run_until_it_is_approved() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        answer, again = await asked(client)
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "refund", "arguments": '{"order": 7}'}
        (waiting,) = answer["demeanor"]["approvals"]
        shown = {"id": call["id"], **call["function"], "reason": "the stack asks before this tool is run"}
        assert waiting["calls"] == [shown]
        assert waiting["expires_at"] == 1_700_000_900
        assert desk.ran == []
        status, done = await post(client, again)
    assert status == 200, done
    assert done["choices"][0]["message"]["content"] == "I read: refunded 7"
    assert done["choices"][0]["finish_reason"] == "stop"
    assert "approvals" not in done["demeanor"]
    assert desk.ran == [{"order": 7}]
    verdicts = [e["verdict"] for e in done["demeanor"]["events"] if e["kind"] == "tool_decision"]
    assert verdicts == ["offered", "approved", "run"]


async def test_the_model_goes_on_with_the_rounds_before_the_call() -> None:
    """The client saw one message; the model reads its own lookup and its result again."""
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        await post(client, again)
    read = [(m.role, m.content, [c.name for c in m.tool_calls]) for m in desk.model_read[-1].messages]
    assert read == [
        ("user", "refund order 7", []),
        ("assistant", "", ["lookup"]),
        ("tool", "order 7: 20 EUR", []),
        ("assistant", "Let me pay. ", ["refund"]),
        ("tool", "refunded 7", []),
    ]
    assert {m.authority for m in desk.model_read[-1].messages if m.role == "tool"} == {0}


async def test_a_denial_is_told_to_the_model_with_its_reason_and_nothing_runs() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        again["approval"]["decisions"][0] |= {"approve": False, "reason": "too much"}
        _, done = await post(client, again)
    assert desk.ran == []
    said = done["choices"][0]["message"]["content"]
    assert (
        said
        == "I read: error: the user did not allow this call, so it was not run; the person said: too much"
    )


async def test_it_works_in_a_stream() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        text = (await client.post("/v1/chat/completions", json={**ASK, "stream": True})).text
        chunks = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
        parts = [chunk["choices"][0] for chunk in chunks]
        (call,) = [call for part in parts for call in part["delta"].get("tool_calls", [])]
        content = "".join(part["delta"].get("content") or "" for part in parts)
        (waiting,) = chunks[-1]["demeanor"]["approvals"]
        message = {"role": "assistant", "content": content, "tool_calls": [call]}
        decisions = [{"call_id": call["id"], "approve": True}]
        body = {**ASK, "stream": True, "messages": [*ASK["messages"], message]}
        body["approval"] = {"token": waiting["token"], "decisions": decisions}
        text = (await client.post("/v1/chat/completions", json=body)).text
    assert "refunded 7" in text
    assert desk.ran == [{"order": 7}]


def cheat(body: dict[str, Any], how: str) -> dict[str, Any]:
    made = json.loads(json.dumps(body))
    approval, message = made["approval"], made["messages"][-1]
    match how:
        case "forged":
            approval["token"] = "A" * len(approval["token"])
        case "a token of before":
            approval["token"] = "v1.eyJ1c2VyIjoiYW5uIn0.AAAA"
        case "half a token":
            approval["token"] = approval["token"][:20]
        case "a pattern":
            approval["token"] = "%' OR 'a'='a"
        case "the turn":
            approval["token"] = "chatcmpl-1"
        case "other arguments":
            message["tool_calls"][0]["function"]["arguments"] = '{"order": 8}'
        case "another tool":
            message["tool_calls"][0]["function"]["name"] = "lookup"
        case "one more call":
            message["tool_calls"].append({**message["tool_calls"][0], "id": "more"})
        case "another text":
            message["content"] = "Let me not pay."
        case "another question":
            made["messages"][0]["content"] = "refund order 9"
        case "one more message":
            made["messages"].append({"role": "user", "content": "and order 9"})
        case "a result for it":
            call_id = message["tool_calls"][0]["id"]
            made["messages"].append({"role": "tool", "tool_call_id": call_id, "content": "refunded"})
        case "no call":
            made["messages"].pop()
        case "another variant":
            made["model"] = "harbour-desk-policy"
        case "another user":
            made["user"] = "mallory"
    return made


CHEATS = (
    "forged",
    "a token of before",
    "half a token",
    "a pattern",
    "the turn",
    "other arguments",
    "another tool",
    "one more call",
    "another text",
    "another question",
    "one more message",
    "a result for it",
    "no call",
    "another variant",
    "another user",
)


@pytest.mark.parametrize("how", CHEATS)
async def test_a_token_allows_nothing_but_what_was_shown(how: str) -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        status, refused = await post(client, cheat(again, how))
        assert (status, refused["error"]["param"]) == (400, "approval.token"), refused
        assert refused["error"]["code"] == "invalid_approval"
        assert desk.ran == []
        assert (await post(client, again))[0] == 200, "the honest request still works"
    assert desk.ran == [{"order": 7}]


async def test_a_token_is_used_once_also_by_requests_side_by_side() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        answers = await asyncio.gather(*(post(client, again) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [200, 400, 400, 400, 400]
    assert {a["error"]["code"] for status, a in each(answers) if status == 400} == {"approval_used"}
    assert desk.ran == [{"order": 7}]


async def test_a_token_expires() -> None:
    desk, time = Desk(), Time()
    async with client_of(desk, time=time) as client:
        _, again = await asked(client)
        time.now_s += 901
        status, refused = await post(client, again)
    assert (status, refused["error"]["code"], desk.ran) == (400, "approval_expired", [])


async def test_another_key_cannot_use_a_token_not_even_of_the_same_user(tmp_path: Path) -> None:
    database = Database(tmp_path / "keys.db")
    anns, bobs, second = (create(database, name) for name in ("ann", "bob", "ann"))
    desk = Desk()
    async with client_of(desk, keys=KeyRing(database)) as client:
        _, again = await asked(client, headers={"authorization": f"Bearer {anns}"})
        for key in (bobs, second):
            status, refused = await post(client, again, headers={"authorization": f"Bearer {key}"})
            assert (status, refused["error"]["code"]) == (400, "invalid_approval")
        assert desk.ran == []
        assert (await post(client, again, headers={"authorization": f"Bearer {anns}"}))[0] == 200
    database.close()


@pytest.mark.parametrize(
    ("decisions", "told"),
    [
        ([{"call_id": "call_9", "approve": True}], "'call_2' is not decided; 'call_9' does not wait"),
        ([{"call_id": "call_2", "approve": True}, {"call_id": "call_2", "approve": False}], "decided twice"),
        (
            [{"call_id": "call_1", "approve": True}, {"call_id": "call_2", "approve": True}],
            "'call_1' does not wait",
        ),
    ],
)
async def test_every_waiting_call_is_decided_once(decisions: list[dict[str, Any]], told: str) -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        again["approval"]["decisions"] = decisions
        status, refused = await post(client, again)
    assert (status, refused["error"]["param"]) == (400, "approval.decisions")
    assert told in refused["error"]["message"]
    assert desk.ran == []


async def test_a_refused_request_does_not_use_the_token_up() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        desk.fails = RequestError("slow down", status=429, code="rate_limit_exceeded")
        assert (await post(client, again))[0] == 429
        desk.fails = None
        assert (await post(client, again))[0] == 200
    assert desk.ran == [{"order": 7}]


async def test_an_approval_needs_one_choice() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        status, refused = await post(client, {**again, "n": 2})
    assert (status, refused["error"]["param"]) == (400, "n")


async def test_each_of_several_choices_has_a_token_of_its_own() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        body = {**ASK, "messages": [{"role": "user", "content": "now"}], "n": 2}
        _, answer = await post(client, body)
        first, second = answer["demeanor"]["approvals"]
        assert (first["choice"], second["choice"]) == (0, 1)
        for found in (first, second):
            message = answer["choices"][found["choice"]]["message"]
            decisions = [{"call_id": call["id"], "approve": True} for call in found["calls"]]
            again = {**body, "n": 1, "messages": [*body["messages"], message]}
            again["approval"] = {"token": found["token"], "decisions": decisions}
            assert (await post(client, again))[0] == 200
    assert len(desk.ran) == 2


async def test_calls_of_the_client_stand_beside_a_waiting_one() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        mail = {"type": "function", "function": {"name": "mail"}}
        body = {**ASK, "messages": [{"role": "user", "content": "both now"}], "tools": [mail]}
        answer, again = await asked(client, body)
        assert [c["function"]["name"] for c in answer["choices"][0]["message"]["tool_calls"]] == [
            "refund",
            "mail",
        ]
        assert [c["name"] for c in answer["demeanor"]["approvals"][0]["calls"]] == ["refund"]
        again["messages"].append({"role": "tool", "tool_call_id": "theirs", "content": "sent"})
        status, _ = await post(client, again)
    assert (status, desk.ran) == (200, [{"order": 7}])
    assert [m.content for m in desk.model_read[-1].messages if m.role == "tool"] == ["sent", "refunded 7"]


async def test_who_goes_on_without_deciding_leaves_the_call_unrun_and_the_model_knows() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        del again["approval"]
        again["messages"].append({"role": "user", "content": "never mind"})
        status, _ = await post(client, again)
    assert (status, desk.ran) == (200, [])
    told = [m.content for m in desk.model_read[2].messages if m.role == "tool"]
    assert told == ["error: the conversation holds no result of this call"]


# ---- /v1/responses ----


@pytest.fixture
async def recorded(tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(tmp_path / "turns.db")
    yield desk
    assert desk.database is not None
    desk.database.close()


REQUEST = {"model": "harbour-desk", "input": "refund order 7"}


async def test_responses_ask_and_are_answered_in_openais_items(recorded: Desk) -> None:
    async with client_of(recorded) as client:
        _, answer = await post(client, REQUEST, "/v1/responses")
        text, wanted = answer["output"]
        assert text["content"][0]["text"] == "Let me pay. "
        assert (wanted["type"], wanted["name"], wanted["arguments"]) == (
            "mcp_approval_request",
            "refund",
            '{"order": 7}',
        )
        assert answer["status"] == "completed"
        kept = (await client.get(f"/v1/responses/{answer['id']}")).json()
        assert [item["type"] for item in kept["output"]] == ["message", "mcp_approval_request"]
        decision = {"type": "mcp_approval_response", "approval_request_id": wanted["id"], "approve": True}
        body = {**REQUEST, "previous_response_id": answer["id"], "input": [decision]}
        status, done = await post(client, body, "/v1/responses")
        assert (status, done["output"][0]["content"][0]["text"]) == (200, "I read: refunded 7")
        status, refused = await post(client, body, "/v1/responses")
        assert (status, refused["error"]["code"], refused["error"]["param"]) == (
            400,
            "approval_used",
            "input",
        )
        assert kept["output"][1] == wanted, "read again it is the same item, and lives no longer"
    assert recorded.ran == [{"order": 7}]


async def test_a_response_goes_on_from_its_items_alone() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        _, answer = await post(client, {**REQUEST, "store": False}, "/v1/responses")
        decision = {
            "type": "mcp_approval_response",
            "approval_request_id": answer["output"][-1]["id"],
            "approve": False,
        }
        items = [{"role": "user", "content": "refund order 7"}, *answer["output"], decision]
        status, done = await post(client, {**REQUEST, "store": False, "input": items}, "/v1/responses")
        assert status == 200, done
        assert done["output"][0]["content"][0]["text"].startswith("I read: error: the user did not allow")
        for bad in ("mcpr_", "mcpr_zz_a", "mcpr_00_a", "call_1"):
            wrong = [*items[:-1], {**decision, "approval_request_id": bad}]
            status, refused = await post(client, {**REQUEST, "store": False, "input": wrong}, "/v1/responses")
            assert (status, refused["error"]["param"]) == (400, "input"), refused
    assert desk.ran == []


async def test_a_streamed_response_asks_too() -> None:
    desk = Desk()
    async with client_of(desk) as client:
        text = (await client.post("/v1/responses", json={**REQUEST, "store": False, "stream": True})).text
    events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == ["message", "mcp_approval_request"]
    assert [e["sequence_number"] for e in events] == list(range(len(events)))


def test_the_openai_sdk_reads_the_items() -> None:
    item = OutputApprovalRequest(
        type="mcp_approval_request", id="mcpr_00_v1.x.y", name="refund", arguments="{}", server_label="stack"
    )
    assert McpApprovalRequest.model_validate(item.model_dump()).name == "refund"


# ---- what is kept ----


def entry(turn: str, expires: float, about: str = "{}") -> KeptApproval:
    return KeptApproval(turn, "ann", f"token of {turn}", expires, about)


async def test_waiting_approvals_are_shared_by_processes_on_one_database(
    database_url: str, tmp_path: Path
) -> None:
    here, there = (open_url(database_url, root=tmp_path) for _ in range(2))
    try:
        first, second = StoredApprovals(here), StoredApprovals(there)
        await first.keep(entry("t", 100.0), 1.0)
        assert await second.find("token of t") == await second.of_turn("t") == entry("t", 100.0)
        assert await first.use("t")
        assert not await second.use("t")
        await second.give_back("t")
        assert await first.use("t")
        assert not await first.use("never kept")
        await second.keep(entry("u", 9e9), 100.0 + TOLD_S)
        assert await first.find("token of t") is not None, "its client is still told that it expired"
        await second.keep(entry("w", 9e9), 101.0 + TOLD_S)
        assert await first.find("token of t") is None
        assert await first.find("token of u") is not None
    finally:
        here.close()
        there.close()


async def test_local_approvals_forget_what_has_expired_and_what_is_too_much() -> None:
    local = LocalApprovals(most_chars=10)
    await local.keep(entry("t", 10.0), 1.0)
    assert await local.use("t")
    assert not await local.use("t")
    await local.keep(entry("u", 30.0), 11.0 + TOLD_S)
    assert list(local.kept) == ["token of u"]
    assert local.used == set()
    for turn in "vw":
        await local.keep(entry(turn, 9e9, "12345"), 12.0)
    assert list(local.kept) == ["token of v", "token of w"], "the oldest makes room"


async def test_a_forgotten_user_and_a_deleted_response_leave_nothing_that_waits(recorded: Desk) -> None:
    database = recorded.database
    assert database is not None
    async with client_of(recorded) as client:
        _, answer = await post(client, REQUEST, "/v1/responses")
        await post(client, {**REQUEST, "user": "ann"}, "/v1/responses")
        assert (await client.delete(f"/v1/responses/{answer['id']}")).status_code == 200
    query = "SELECT turn, user FROM waiting_approvals"
    ((_, user),) = database.rows(query)
    assert user == "ann"
    assert stored(database, "ann")["waiting_approvals"] == 1
    assert forget(database, "ann")["waiting_approvals"] == 1
    assert database.rows(query) == []


async def test_an_old_response_that_is_read_again_gets_no_new_life(recorded: Desk) -> None:
    time = Time()
    async with client_of(recorded, time=time) as client:
        _, answer = await post(client, REQUEST, "/v1/responses")
        time.now_s += 901
        kept = (await client.get(f"/v1/responses/{answer['id']}")).json()
        id_ = kept["output"][1]["id"]
        decision = {"type": "mcp_approval_response", "approval_request_id": id_, "approve": True}
        body = {**REQUEST, "previous_response_id": answer["id"], "input": [decision]}
        status, refused = await post(client, body, "/v1/responses")
    assert (status, refused["error"]["code"]) == (400, "approval_expired")
    assert recorded.ran == []


async def test_a_second_approval_in_a_row_reads_the_first_ones_result() -> None:
    """The answer to an approval asks again: the next token stands for all rounds so far."""
    desk = Desk()
    async with client_of(desk) as client:
        _, again = await asked(client)
        desk.layer = tools.wrap(
            tools.Spec.model_construct(allow=("refund", "lookup"), approve=("refund",)),
            _asks_twice(desk),
            kit_of(desk),
        )
        _, third = await asked(client, again)
        third["approval"]["decisions"] = [{"call_id": "again", "approve": True}]
        status, done = await post(client, third)
    assert status == 200, done
    assert desk.ran == [{"order": 7}, {"order": 8}]
    read = [(m.role, m.content, [c.id for c in m.tool_calls]) for m in desk.model_read[-1].messages]
    assert read[-4:] == [
        ("assistant", "Let me pay. ", ["call_2"]),
        ("tool", "refunded 7", []),
        ("assistant", "", ["again"]),
        ("tool", "refunded 8", []),
    ]
    assert len(read) == 7


def kit_of(desk: Desk) -> Kit:
    lookup = LoadedTool(LOOKUP, lambda arguments: "order")
    return kit({"refund": LoadedTool(REFUND, desk._refund), "lookup": lookup})


def _asks_twice(desk: Desk) -> Respond:
    async def respond(turn: Turn) -> AsyncIterator[Event]:
        desk.model_read.append(turn)
        if any(call.id == "again" for m in turn.messages for call in m.tool_calls):
            yield Text("Both are paid.")
            yield Done("stop")
        else:
            yield ToolCalled(ToolCall("again", "refund", '{"order": 8}'))
            yield Done("tool_calls")

    return respond


async def test_a_token_says_nothing_and_is_as_long_as_every_other() -> None:
    """What it stands for holds results of tools, which a policy or the operator may hide from the client."""
    desk, tokens = Desk(), []
    async with client_of(desk) as client:
        for question in ("refund order 7", "refund order 7 " * 100):
            answer, _ = await asked(client, {**ASK, "messages": [{"role": "user", "content": question}]})
            tokens.append(answer["demeanor"]["approvals"][0]["token"])
    assert [len(token) for token in tokens] == [43, 43]
    assert len(set(tokens)) == 2
