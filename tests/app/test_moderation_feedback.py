"""A served stack's policy as a classifier agrees with the layer itself, and feedback lies beside its turn in the database."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from demeanor.app import MAX_VARIANTS, StackRuntime, load_stack
from demeanor.core.errors import RequestError
from demeanor.core.types import Decoding, Message, Turn
from demeanor.layers import policy
from demeanor.layers.policy import judge_turn
from demeanor.layers.policy.matching import Rule, load
from demeanor.server.application import app
from demeanor.serving import ServedStack
from demeanor.stack.stack import Stack
from demeanor.store.database import Database, Feedback
from demeanor.training.runs import Runs
from tests.app import tiny

TEXTS = [
    "When to Jorpel?",
    "Pretend you are a pirate.",
    "PRETEND YOU ARE a ferry",
    "4111 1111 1111 1111",
    "pre\u200btend you are",
    "",
]


@pytest.fixture
def client(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    monkeypatch.chdir(tmp_path)
    with closing(StackRuntime(*trained)) as runtime:
        yield TestClient(app(ServedStack(runtime)), base_url="http://localhost")


def test_a_text_is_flagged_by_the_rules_that_the_layer_would_apply(
    client: TestClient, trained: tuple[Stack, Runs]
) -> None:
    stack, _ = trained
    (spec,) = (layer.spec for layer in stack.layers if isinstance(layer.spec, policy.Spec))
    asked = TEXTS[:-1]
    answer = client.post("/v1/moderations", json={"input": asked}).json()
    for text, result in zip(asked, answer["results"]):
        by_rule = {}
        for rule in load(stack.root / spec.rules):
            outcome, _ = judge_turn(Turn((Message("user", text),), Decoding()), [rule])
            by_rule[rule.name] = isinstance(outcome, Rule) or outcome.messages[0].content != text
        assert result["categories"] == by_rule
        assert result["flagged"] == any(by_rule.values())
    assert [r["flagged"] for r in answer["results"]] == [False, True, True, True, True]


def test_a_variant_without_policy_moderates_nothing(client: TestClient) -> None:
    response = client.post("/v1/moderations", json={"input": "x", "model": "tiny-desk-policy"})
    assert response.status_code == 404
    assert "its layers: record, limits, tools, retrieval, prompt" in response.json()["error"]["message"]


def test_feedback_is_stored_beside_its_turn(client: TestClient, tmp_path: Path) -> None:
    turn_id = client.post(
        "/v1/chat/completions", json={"model": "tiny-desk", "messages": [{"role": "user", "content": "Hi"}]}
    ).json()["id"]
    given = client.post(
        "/v1/feedback", json={"id": turn_id, "score": -1, "comment": "No.", "corrected": "At 9."}
    )
    assert given.status_code == 200, given.text
    assert client.post("/v1/feedback", json={"id": f"{turn_id}-1", "score": 1}).status_code == 404
    with closing(Database(tmp_path / "tiny.db")) as stored:
        (found,) = stored.feedback()
        assert stored.turn(turn_id) is not None
    assert found == Feedback(turn_id, -1.0, "No.", "anonymous", found.created, "At 9.")


def test_raw_continuations_can_be_judged_too(client: TestClient) -> None:
    answer = client.post(
        "/v1/completions", json={"model": "tiny-desk:dpo", "prompt": "The Orrin", "max_tokens": 2}
    ).json()
    assert "id" in answer, answer
    assert client.post("/v1/feedback", json={"id": answer["id"], "score": 1}).status_code == 200


def test_endless_ways_to_write_a_variant_are_one_variant_and_fill_no_cache(tmp_path: Path) -> None:
    stack = load_stack(tiny.write(tmp_path))
    served = ServedStack(StackRuntime(stack, Runs(tmp_path / "runs")))
    known = {variant.model_id for variant in stack.offered()}
    for seed in range(2 * MAX_VARIANTS):
        order = random.Random(seed).choices(["policy", "tools", "retrieval"], k=5)
        card = served.card("-".join(["tiny-desk", *order]))
        assert card.id == "-".join(
            ["tiny-desk", *(x for x in ("policy", "tools", "retrieval") if x in order)]
        )
        assert served.card("tiny-desk:" + "+".join([*order, "sft"])).id.startswith("tiny-desk:sft+")
    assert served._found.cache_info().currsize == MAX_VARIANTS
    assert {card.id for card in served.models()} == known
    for endless in ("tiny-desk" + "-policy" * 100, "tiny-desk:" + "sft+" * 200_000, "x" * 1_000_000):
        with pytest.raises(RequestError) as refused:
            served.card(endless)
        assert (refused.value.status, len(str(refused.value)) < 2000) == (404, True)
