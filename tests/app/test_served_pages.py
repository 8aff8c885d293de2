"""What the pages need of a served stack: the operator's settings, the turns of the record layer, and another answer to one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient

from demeanor.app import StackRuntime, load_stack
from demeanor.server.application import app
from demeanor.serving import ServedStack
from demeanor.stack.stack import Stack
from demeanor.training.runs import Runs
from tests.app import tiny

SERVE = {
    "show": {"prompts": False, "passages": "none", "tools": False},
    "settings": ["max_tokens"],
    "history": False,
}
ASK = {"model": "tiny-desk", "messages": [{"role": "user", "content": "When to Jorpel?"}], "max_tokens": 4}


@pytest.fixture
def client(
    trained: tuple[Stack, Runs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    stack, runs = trained
    path = stack.root / "shown.yaml"
    path.write_text(yaml.safe_dump(tiny.TINY | {"serve": SERVE}, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    shown = load_stack(path)
    assert shown.key() == stack.key()  # what clients see and set is no part of what answers
    with closing(StackRuntime(shown, runs)) as runtime:
        yield TestClient(app(ServedStack(runtime)), base_url="http://localhost", client=("127.0.0.1", 9))


def test_the_settings_of_serve_hold_for_every_client(client: TestClient) -> None:
    page = client.get("/v1/models").json()["demeanor"]["page"]
    assert page == {"settings": ["max_tokens"], "history": False, "feedback": True}
    events = client.post("/v1/chat/completions", json=ASK).json()["demeanor"]["events"]
    shown = {e["kind"]: e for e in events}
    assert shown["prompted"]["by"] == "prompt"
    assert "messages" not in shown["prompted"]
    assert "text" not in shown["passage"]
    refused = client.post("/v1/chat/completions", json=ASK | {"temperature": 1})
    assert (refused.status_code, refused.json()["error"]["param"]) == (403, "temperature")


def test_a_recorded_turn_is_opened_and_answered_again_without_a_record(client: TestClient) -> None:
    asked = client.post("/v1/chat/completions", json=ASK).json()
    opened = client.get(f"/v1/demeanor/turns/{asked['id']}").json()
    assert opened["turn"]["answer"] == asked["choices"][0]["message"]["content"]
    assert "weights" in {e["by"] for e in opened["events"] if e["kind"] == "timing"}
    assert next(e for e in opened["events"] if e["kind"] == "prompted")["messages"]  # operators see it
    path = f"/v1/demeanor/turns/{asked['id']}/replay"
    again = client.post(path, json={"model": "tiny-desk"}).json()
    assert again["text"] == opened["turn"]["answer"]  # greedy
    other = client.post(path, json={"model": "tiny-desk:dpo"}).json()
    assert (other["model"], other["refused"]) == ("tiny-desk:dpo", None)
    assert len(client.get("/v1/demeanor/turns").json()["data"]) == 1
