"""Experiments and shadows of a real stack behind the API: who answers is told, another stack file may be an arm, operators see results."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient

from demeanor.app import load_stack
from demeanor.core.errors import SpecError, UsageError
from demeanor.server.application import app
from demeanor.server.auth import KeyRing
from demeanor.server.operators import TrafficAnswer
from demeanor.serving import ServedStack, StackVersions
from demeanor.stack.stack import Stack
from demeanor.store import keys, turn_jobs
from demeanor.store.database import open_url
from demeanor.training.runs import Runs
from tests.app import tiny
from tests.conftest import each

SCORE = {"kind": "refused", "window_hours": 0}
SERVE: dict[str, Any] = {
    "experiments": [
        {
            "name": "prompt",
            "arms": [
                {"model": "tiny-desk", "share": 0.4},
                {"model": "tiny-desk-prompt", "share": 0.3},
                {"model": "tiny-desk", "stack": "other.yaml", "share": 0.3, "name": "other"},
            ],
            "score": SCORE,
        }
    ],
    "shadows": [
        {"name": "bare", "model": "tiny-desk:sft", "budget": {"per_minute": None}},
    ],
    "evaluators": [{"name": "says-no", "scorer": "refusal", "target": {"refuse": True}}],
}


def write(folder: Path, serve: dict[str, Any]) -> Path:
    path = tiny.write(folder)
    (folder / "other.md").write_text("You are the other clerk.\n")
    layers = [*tiny.TINY["layers"][:-1], {"kind": "prompt", "system": "other.md"}]  # type: ignore[index]
    (folder / "other.yaml").write_text(yaml.safe_dump(tiny.TINY | {"layers": layers}, sort_keys=False))
    path.write_text(yaml.safe_dump(tiny.TINY | {"serve": serve}, sort_keys=False))
    return path


@pytest.fixture
def path(trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "desk", SERVE)


@pytest.fixture
def versions(path: Path, trained: tuple[Stack, Runs]) -> Iterator[StackVersions]:
    versions = StackVersions(lambda: load_stack(path), trained[1])
    yield versions
    versions.close()


def ask(client: TestClient, user: str, **given: Any) -> Any:
    body = {
        "model": "tiny-desk",
        "messages": [{"role": "user", "content": "When to Corkel today?"}],
        "user": user,
    }
    found = client.post("/v1/chat/completions", json=body | given)
    assert found.status_code == 200, found.text
    return found


def served_of(versions: StackVersions) -> ServedStack:
    served = versions.open().assistant
    assert isinstance(served, ServedStack)
    return served


def test_the_response_says_which_arm_answered_and_the_turn_is_that_arms(versions: StackVersions) -> None:
    served = served_of(versions)
    keys_of = {arm: stack.key() for (_, arm), stack in served.opened.arms.items()}  # type: ignore[union-attr]
    with TestClient(app(served), base_url="http://localhost") as client:
        found = [ask(client, f"u{n}") for n in range(12)]
        again = [ask(client, f"u{n}") for n in range(3)]
        whole = ask(client, "u1", model="tiny-desk:sft")
        streamed = ask(client, "u0", stream=True)
        response = client.post("/v1/responses", json={"model": "tiny-desk", "input": "Hi", "user": "u0"})
    arms = [answer.headers["x-demeanor-experiment"] for answer in found]
    assert set(arms) == {"prompt/control", "prompt/treatment", "prompt/other"}
    assert [answer.headers["x-demeanor-experiment"] for answer in again] == arms[:3]
    assert "x-demeanor-experiment" not in whole.headers
    assert streamed.headers["x-demeanor-experiment"] == response.headers["x-demeanor-experiment"] == arms[0]
    number = {"control": 0, "treatment": 1, "other": 2}
    store = served.turn_store()
    assert store is not None
    for answer in each(found):
        about = answer.json()["demeanor"]["experiment"]
        assert f"{about['name']}/{about['arm']}" == answer.headers["x-demeanor-experiment"]
        recorded = store.find(answer.json()["id"])
        assert recorded is not None
        key = keys_of[number[about["arm"]]]
        assert (answer.json()["system_fingerprint"], recorded.turn.stack_key) == (key, key)
    assert len(set(keys_of.values())) == 3


def test_shadows_and_evaluators_run_beside_and_operators_see_them(
    versions: StackVersions, tmp_path: Path
) -> None:
    served = served_of(versions)
    database = open_url("sqlite:///keys.db", root=tmp_path)
    user, operator = keys.create(database, "edda"), keys.create(database, "root", scopes=["operator"])
    with TestClient(app(served, keys=KeyRing(database)), base_url="http://localhost") as client:
        client.headers["authorization"] = f"Bearer {user}"
        answer = ask(client, "ignored: the key names the user")
        assert "x-demeanor-experiment" in answer.headers  # though no arm but the whole is published
        assert client.get("/v1/demeanor/traffic").status_code == 403
        client.headers["authorization"] = f"Bearer {operator}"
        until = time.monotonic() + 60
        while True:
            report = client.get("/v1/demeanor/traffic").json()
            assert TrafficAnswer.model_validate(report).model_dump(mode="json") == report
            counts = {job["name"]: job["counts"] for job in report["jobs"]}
            if all(counts.get(name, {}).get("done") == 1 for name in ("bare", "says-no")):
                break
            assert time.monotonic() < until, report
            time.sleep(0.02)
        (experiment,) = report["experiments"]
        assert sum(arm["users"] for arm in experiment["result"]["arms"]) == 1
        stopped = client.post("/v1/demeanor/experiments/prompt/stop", json={"reason": "enough"})
        assert stopped.json()["stopped"] is True
        client.headers["authorization"] = f"Bearer {user}"
        assert "x-demeanor-experiment" not in ask(client, "edda").headers
        client.headers["authorization"] = f"Bearer {operator}"
        assert client.post("/v1/demeanor/experiments/nothing/stop", json={}).status_code == 404
    (job,) = turn_jobs.jobs(served.opened.live.database, kind="shadow", turn=answer.json()["id"])  # type: ignore[union-attr]
    assert job.turn == answer.json()["id"]
    assert job.outcome is not None
    assert job.outcome.model == "tiny-desk:sft"
    database.close()


def test_a_plain_key_is_no_operator(versions: StackVersions) -> None:
    plain = app(served_of(versions), keys=lambda key: "somebody")
    with TestClient(plain, base_url="http://localhost") as client:
        client.headers["authorization"] = "Bearer x"
        found = client.get("/v1/demeanor/traffic")
        assert (found.status_code, found.json()["error"]["code"]) == (403, "insufficient_scope")
        assert client.get("/v1/models").status_code == 200


def test_the_answer_of_a_variant_without_the_policy_is_kept_as_the_policy_shows_it(
    versions: StackVersions,
) -> None:
    import asyncio

    from demeanor.core.types import Completion, Decoding, Message, Turn
    from demeanor.traffic_services import screen_of

    served = served_of(versions)
    bare = served.runtime.stack.resolve("tiny-desk:sft")
    hidden = Completion("It is 4111 1111 1111 1111.", "stop")
    turn = Turn((Message("user", "Your card?"),), Decoding())
    assert asyncio.run(screen_of(served.runtime, bare)(turn, hidden)) == "I cannot show that."
    whole = served.runtime.stack
    assert (
        asyncio.run(screen_of(served.runtime, whole)(turn, hidden)) == hidden.text
    )  # its own policy has seen it


def test_a_reload_with_another_arm_ends_the_run_and_begins_another(
    versions: StackVersions, path: Path
) -> None:
    first = served_of(versions)
    with TestClient(app(first), base_url="http://localhost") as client:
        ask(client, "u1")
        before = first.opened.live.report()["experiments"]  # type: ignore[union-attr]
        (path.parent / "other.md").write_text("You are the third clerk.\n")
        second = served_of(versions)
    with TestClient(app(second), base_url="http://localhost") as client:
        until = time.monotonic() + 60
        ask(client, "u1")
        while len(after := second.opened.live.report()["experiments"]) < 2:  # type: ignore[union-attr]
            assert time.monotonic() < until
            time.sleep(0.02)
    assert (before[0]["state"], after[0]["state"], after[1]["state"]) == ("running", "stopped", "running")
    assert after[0]["reason"] == f"replaced by {after[1]['id']}"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"experiments": [SERVE["experiments"][0] | {"score": {"kind": "scorer", "scorer": "judged"}}]},
            "evaluator, evaluator: NAME",
        ),
        ({"shadows": [{"name": "a", "model": "tiny-desk-polcy"}]}, "Did you mean 'policy'"),
        ({"shadows": [{"name": "a", "model": "tiny-desk", "stack": "no.yaml"}]}, "no such file"),
        ({"evaluators": [{"name": "a", "scorer": "exact"}]}, "answers"),
        ({"evaluators": [{"name": "a", "scorer": "judged"}]}, "evaluation.judge"),
        (
            {"evaluators": [{"name": "a", "scorer": "refusal", "target": {"refuse": True}}] * 2},
            "stands twice",
        ),
    ],
)
def test_a_declaration_that_cannot_run_is_refused_when_it_is_read(
    change: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=what):
        load_stack(write(tmp_path, change))


def test_without_recorded_turns_nothing_can_be_declared(tmp_path: Path) -> None:
    path = write(tmp_path, SERVE)
    raw = yaml.safe_load(path.read_text())
    raw["layers"] = [
        raw["layers"][2],
        raw["layers"][0],
        *raw["layers"][3:],
    ]  # the policy outside of the record
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(SpecError, match="record"):
        load_stack(path)


def test_two_arms_of_one_stack_key_are_refused(path: Path, trained: tuple[Stack, Runs]) -> None:
    (path.parent / "other.yaml").write_text(yaml.safe_dump(tiny.TINY))
    versions = StackVersions(lambda: load_stack(path), trained[1])
    with pytest.raises(UsageError, match="same stack key"):
        versions.open()
    assert (versions.living, versions.beside) == ([], [])


def test_live_traffic_is_no_part_of_the_stack_key(tmp_path: Path) -> None:
    plain = load_stack(tiny.write(tmp_path / "plain"))
    assert load_stack(write(tmp_path / "served", SERVE)).key() == plain.key()
