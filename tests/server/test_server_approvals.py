"""Approvals end to end: a real tools layer behind the real app; what is shown, what runs, and every way to cheat."""

from __future__ import annotations

import asyncio
import base64
import json
import zlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types.responses.response_output_item import McpApprovalRequest
from scripted import Scripted

from demeanor.core.errors import RequestError, UsageError
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
from demeanor.server.approvals import Approver, LocalApprovals, secret_of
from demeanor.server.auth import KeyRing
from demeanor.server.responses_answer import OutputApprovalRequest
from demeanor.store.database import Database
from demeanor.store.keys import create
from demeanor.store.used_approvals import StoredApprovals
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
    made = app(desk, keys=keys, now=clock, approver=Approver(b"s" * 32, now=clock), **about)
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


OURS = Approver(b"s" * 32)


def altered(token: str, **changes: Any) -> str:
    """The token with other contents, as somebody would write it who can read it, and its old signature."""
    version, body, mac = token.split(".")
    return f"{version}.{OURS.sealed(OURS.opened(body) | changes).split('.')[1]}.{mac}"


def cheat(body: dict[str, Any], how: str) -> dict[str, Any]:
    made = json.loads(json.dumps(body))
    approval, message = made["approval"], made["messages"][-1]
    match how:
        case "forged":
            approval["token"] = Approver(b"x" * 32).sealed(OURS.opened(approval["token"].split(".")[1]))
        case "no token":
            approval["token"] = "v1.."
        case "another signature":
            approval["token"] = approval["token"][:-2] + ("AA" if approval["token"][-2:] != "AA" else "BB")
        case "a longer life":
            approval["token"] = altered(approval["token"], expires=9_999_999_999)
        case "another user inside":
            approval["token"] = altered(approval["token"], user="mallory")
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
    "no token",
    "another signature",
    "a longer life",
    "another user inside",
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
        later = {
            "type": "mcp_approval_response",
            "approval_request_id": kept["output"][1]["id"],
            "approve": True,
        }
        status, refused = await post(client, {**body, "input": [later]}, "/v1/responses")
        assert (status, refused["error"]["code"]) == (400, "approval_used"), "read again is the same approval"
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
        for bad in ("mcpr_", "mcpr_zz_v1.a.b", "call_1"):
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


# ---- secrets and stores ----


def test_a_short_secret_is_refused_and_none_means_a_random_one() -> None:
    with pytest.raises(UsageError, match="at least 32"):
        secret_of("short")
    assert secret_of("a" * 32) == b"a" * 32
    assert secret_of(None) != secret_of(None)
    assert "s" * 32 not in repr(Approver(b"s" * 32))


async def test_used_approvals_are_shared_by_processes_on_one_database(tmp_path: Path) -> None:
    here, there = Database(tmp_path / "a.db"), Database(tmp_path / "a.db")
    try:
        first, second = StoredApprovals(here), StoredApprovals(there)
        assert await first.use("t", 100.0, 1.0)
        assert not await second.use("t", 100.0, 2.0)
        await second.give_back("t")
        assert await first.use("t", 100.0, 3.0)
        assert await second.use("u", 300.0, 200.0), "and those that have expired are forgotten"
        assert [row["id"] for row in here.rows("SELECT id FROM used_approvals")] == ["u"]
    finally:
        here.close()
        there.close()


async def test_local_approvals_forget_what_has_expired() -> None:
    local = LocalApprovals()
    assert await local.use("t", 10.0, 1.0)
    assert not await local.use("t", 10.0, 9.0)
    assert await local.use("u", 30.0, 20.0)
    assert list(local.used) == ["u"]


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


async def test_a_token_shows_nothing_of_what_it_carries() -> None:
    """It holds results of tools, which a policy or the operator may hide from the client."""
    desk = Desk()
    async with client_of(desk) as client:
        answer, _ = await asked(client)
    token = answer["demeanor"]["approvals"][0]["token"]
    _, body, _ = token.split(".")
    assert "20 EUR" in str(OURS.opened(body)["tail"])
    raw = base64.urlsafe_b64decode(body + "==")
    with pytest.raises(zlib.error):
        zlib.decompress(raw[16:])
    again = (await _token_of_the_same()).split(".")[1]
    assert again[:20] != body[:20], "and two tokens share no key stream"


async def _token_of_the_same() -> str:
    async with client_of(Desk()) as client:
        answer, _ = await asked(client)
    return str(answer["demeanor"]["approvals"][0]["token"])
