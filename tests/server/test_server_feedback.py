"""/v1/feedback: what is stored, for whom, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from scripted import Scripted, body

from demeanor.server.application import app
from demeanor.server.auth import from_digests
from demeanor.store.keys import digest


async def answered(client: httpx.AsyncClient, **headers: str) -> str:
    return str((await client.post("/v1/chat/completions", json=body("seed"), headers=headers)).json()["id"])


@pytest.mark.parametrize(
    "fields",
    [
        {"score": 1},
        {"score": -1, "comment": "No.", "corrected": "At 17."},
        {"score": 0, "comment": None},
        {"score": -1, "reasons": ["wrong", "too_long"]},
    ],
)
async def test_feedback_on_an_answer_is_stored_under_its_id(
    client: httpx.AsyncClient, assistant: Scripted, fields: dict[str, Any]
) -> None:
    turn_id = await answered(client)
    response = await client.post("/v1/feedback", json={"id": turn_id, **fields})
    assert response.status_code == 200
    assert response.json() == {
        "object": "feedback",
        "id": turn_id,
        "comment": None,
        "corrected": None,
        "reasons": [],
        **fields,
    }
    assert assistant.opinions_given == [
        (
            turn_id,
            fields["score"],
            fields.get("comment"),
            fields.get("corrected"),
            None,
            tuple(fields.get("reasons", ())),
        )
    ]


async def test_an_unknown_id_is_a_404(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/feedback", json={"id": "chatcmpl-none", "score": 1})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (404, "id", "not_found")
    assert "chatcmpl-none" in error["message"]


async def test_a_stack_without_record_layer_is_a_409_that_names_it(
    client: httpx.AsyncClient, assistant: Scripted
) -> None:
    assistant.records = False
    response = await client.post("/v1/feedback", json={"id": await answered(client), "score": 1})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (409, "no_record_layer")
    assert "record layer" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"score": 2}, "score"),
        ({"score": 0.5}, "score"),
        ({"score": True}, "score"),
        ({}, "score"),
        ({"score": 1, "id": ""}, "id"),
        ({"score": 1, "corrected": ""}, "corrected"),
        ({"score": 1, "coment": "x"}, "coment"),
        ({"score": 1, "comment": "x" * 20_001}, "comment"),
    ],
)
async def test_a_wrong_opinion_names_its_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/feedback", json={"id": "a", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_with_keys_one_may_judge_answers_of_ones_own_only() -> None:
    assistant = Scripted()
    keys = from_digests({digest("a"): "ann", digest("b"): "bob"})
    ann, bob = {"authorization": "Bearer a"}, {"authorization": "Bearer b"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app(assistant, keys=keys)), base_url="http://desk"
    ) as client:
        turn_id = await answered(client, **ann)
        statuses = [
            (await client.post("/v1/feedback", json={"id": turn_id, "score": 1}, headers=h)).status_code
            for h in ({}, bob, ann)
        ]
    assert statuses == [401, 404, 200]
    assert [given[4] for given in assistant.opinions_given] == ["ann"]
