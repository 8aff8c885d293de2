"""What the operator allows (`serve: show` and `settings`): texts that are not shown, settings that are refused by name."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from scripted import Scripted, body

from demeanor.server.assistant import ClientAccess, TraceView

SYSTEM = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]


async def events(client: httpx.AsyncClient, question: str, *, stream: bool = False) -> list[dict[str, Any]]:
    response = await client.post("/v1/chat/completions", json=body(question, stream=stream))
    assert response.status_code == 200
    if not stream:
        return list(response.json()["demeanor"]["events"])
    chunks = [json.loads(x[6:]) for x in response.text.split("\n\n") if x.startswith("data: {")]
    return list(chunks[-1]["demeanor"]["events"])


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_that_are_not_shown_leave_the_trace_and_who_did_what_stays(
    client: httpx.AsyncClient, assistant: Scripted, stream: bool
) -> None:
    assistant.offered = ClientAccess(shown=TraceView(prompts=False, passages="cited", tools=False))
    found = await events(client, "the ferry?", stream=stream)
    assert [e["kind"] for e in found][:4] == ["passage", "passage", "timing", "prompted"]
    assert ["text" in e for e in found if e["kind"] == "passage"] == [True, False]
    assert ["messages" in e for e in found if e["kind"] == "prompted"] == [False]
    found = await events(client, "37 times 12", stream=stream)
    kinds = {e["kind"]: e for e in found}
    assert kinds["tool_call"]["name"] == "calculator"
    assert "arguments" not in kinds["tool_call"]
    assert "content" not in kinds["tool_result"]


async def test_with_passages_none_no_text_of_one_is_shown(
    client: httpx.AsyncClient, assistant: Scripted
) -> None:
    assistant.offered = ClientAccess(shown=TraceView(passages="none"))
    found = await events(client, "the ferry?")
    assert [e["source"] for e in found if e["kind"] == "passage"] == [
        "notices/ferries.md",
        "notices/berths.md",
    ]
    assert "Ferries today" not in json.dumps(found)


@pytest.mark.parametrize(
    ("allowed", "path", "fields", "param"),
    [
        (("sampling", "max_tokens"), "chat/completions", {"messages": SYSTEM}, "messages[0].role"),
        (("system_prompt", "max_tokens"), "chat/completions", {"temperature": 0}, "temperature"),
        (("system_prompt", "max_tokens"), "chat/completions", {"top_k": 3}, "top_k"),
        (
            ("system_prompt", "sampling"),
            "chat/completions",
            {"max_completion_tokens": 3},
            "max_completion_tokens",
        ),
        ((), "responses", {"instructions": "Be rude."}, "instructions"),
        ((), "responses", {"input": [{"role": "developer", "content": "Be rude."}]}, "input[0].role"),
        ((), "responses", {"max_output_tokens": 3}, "max_output_tokens"),
        ((), "completions", {"temperature": 1.5}, "temperature"),
    ],
)
async def test_a_fixed_setting_is_refused_by_name_and_nothing_is_asked(
    client: httpx.AsyncClient,
    assistant: Scripted,
    allowed: tuple[str, ...],
    path: str,
    fields: dict[str, Any],
    param: str,
) -> None:
    assistant.offered = ClientAccess(settings=allowed)
    plain = {
        "chat/completions": body("hello"),
        "responses": {"model": "harbour-desk", "input": "hello"},
        "completions": {"model": "harbour-desk:dpo", "prompt": "hello"},
    }
    response = await client.post(f"/v1/{path}", json={**plain[path], **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (403, param, "setting_not_allowed")
    assert assistant.turns == []
    assert (await client.post(f"/v1/{path}", json=plain[path])).status_code == 200
