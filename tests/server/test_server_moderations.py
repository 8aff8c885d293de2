"""/v1/moderations over scripted rules: shapes of the request and of the answer, and the openai SDK over a socket."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from live import served
from openai import OpenAI
from scripted import Scripted


async def moderate(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/moderations", json=fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


async def test_a_category_is_a_rule_and_its_score_is_one_or_zero(client: httpx.AsyncClient) -> None:
    answer = await moderate(client, input="my card, your card")
    assert answer["model"] == "harbour-desk"
    assert answer["id"].startswith("modr-")
    assert answer["demeanor"] == {"stack_key": "5f0c9a1be47d", "layer": "policy"}
    assert answer["results"] == [
        {
            "flagged": True,
            "categories": {"no-cards": True, "no-pirates": False},
            "category_scores": {"no-cards": 1.0, "no-pirates": 0.0},
            "category_applied_input_types": {"no-cards": ["text"], "no-pirates": ["text"]},
            "demeanor": {
                "matches": [
                    {
                        "rule": "no-cards",
                        "on": "both",
                        "action": "refuse",
                        "reason": "asks for a card",
                        "spans": [[3, 7], [14, 18]],
                    }
                ]
            },
        }
    ]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ("fine", [False]),
        (["fine", "a pirate", "fine"], [False, True, False]),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "pirate"}], [True]),
    ],
)
async def test_each_text_has_a_result_and_parts_are_one_text(
    client: httpx.AsyncClient, given: Any, flags: list[bool]
) -> None:
    assert [r["flagged"] for r in (await moderate(client, input=given))["results"]] == flags


async def test_a_variant_without_policy_is_a_404_that_names_the_layer(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/moderations", json={"input": "x", "model": "harbour-desk-policy"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "no_policy_layer", "model")
    assert "policy layer" in error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"type": "image_url", "image_url": {"url": "x"}}]}, "input[0].type"),
        ({"input": "x", "modle": "y"}, "modle"),
        ({"input": "x", "model": 3}, "model"),
        ({"input": ["x"] * 257}, "input"),
    ],
)
async def test_a_wrong_moderation_request_names_its_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    response = await client.post("/v1/moderations", json=fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_a_model_of_openais_is_not_found_here(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/moderations", json={"input": "x", "model": "omni-moderation-latest"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_the_sdk_reads_the_answer() -> None:
    with served(Scripted()) as url, OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as sdk:
        answer = sdk.moderations.create(input=["a card", "nothing"])
    assert [r.flagged for r in answer.results] == [True, False]
    assert answer.results[0].categories.model_extra == {"no-cards": True, "no-pirates": False}
